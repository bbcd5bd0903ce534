"""The templates that run jobs: `generate`, and `status`, which tells of a job and finishes forgotten ones."""

from __future__ import annotations

import record
from template import ALERT, GO_ON, KEY, Template

_LIBRARY = ("comfyui.js", "answers.js")
# What succeeded is in the record: kept here as well it would fill n8n's disk with a second copy of each file.
_SETTINGS = {"errorWorkflow": ALERT, "saveDataSuccessExecution": "none"}
# As it is in Config, perhaps with a user name and a password; what is recorded has none (prepare.js).
_URL = "$('Config').first().json.comfyui_url.trim().replace(/\\/+$/, '')"
_SERVER = f"={{{{ {_URL} }}}}"
_LONGEST = "...String($('Config').first().json.poll_seconds).split(',').map((s) => Number(s) || 0)"
_ASKED = (
    "JSON.stringify({ prompt_id: $json.prompt_id, worker: $json.worker, state: $json.state, "
    "server: $json.server, submitted_id: $json.submitted_id, anybody: !$json.once, "
    f"seconds: Math.max($json.wait_seconds ?? 5, {_LONGEST}) + 120, graph: $json.once && !$json.graph }})"
)


def generate() -> Template:
    """POST a workflow, get its files: now, or later by the other webhook."""
    t = Template("comfyflowGener01", "comfyflow: generate", **_SETTINGS)
    _webhook(t, (0, 0), "POST", "comfyflow/generate")
    _config(t, (1, 0), wait_by_default=True)
    t.code("Prepare job", (2, 0), *_LIBRARY, "sha256.js", "rows.js", "prepare.js")
    t.either("Valid?", (3, 0), "$json.ok")
    t.sql("Begin", (4, 0), record.BEGIN, "$json.begin", "$json.graph_text")
    t.code("Decide", (5, 0), *_LIBRARY, "pace.js", "decide.js")
    t.switch("New?", (6, 0), "$json.next", "send", "follow", "answer")
    t.link("Webhook", "Config", "Prepare job", "Valid?", "Begin", "Decide", "New?", "Payload")
    _submit(t, 7)
    _follow(t, 12, "send")
    t.link("Complete?", "Payload", out=7)
    t.link("Valid?", "Answer", out=1)
    t.link("New?", "Wait", out=1)
    t.link("New?", "Give up", out=2)
    _notes(t)
    _parameters(t, (0.6, -2))
    return t


def status() -> Template:
    """GET how a job stands, and end it where nobody else does. Every minute: those that were forgotten."""
    t = Template("comfyflowStatus1", "comfyflow: status", **_SETTINGS)
    _webhook(t, (7, -1), "GET", "comfyflow/status")
    rule = {"interval": [{"field": "minutes", "minutesInterval": 1}]}
    t.node("Every minute", "scheduleTrigger", (7, 1), {"rule": rule})
    _config(t, (8, 0))
    t.either("Asked?", (9, 0), "$('Webhook').isExecuted")
    recorded = f"{_URL}.replace(/\\/\\/[^/@]*@/, '//')"
    t.sql("Forgotten job", (10, 1), record.FORGOTTEN, recorded)
    t.code("Prepare job", (11, 0), *_LIBRARY, "prepare_status.js")
    t.either("Valid?", (12, 0), "$json.ok")
    t.link("Webhook", "Config", "Asked?", "Prepare job", "Valid?", "Loop")
    t.link("Every minute", "Config")
    t.link("Asked?", "Forgotten job", "Prepare job", out=1)
    _follow(t, 12)
    t.link("Valid?", "Answer", out=1)
    t.either("Next one?", (38, 2), "!$('Webhook').isExecuted && $runIndex < 20")
    t.link("Alarm?", "Next one?", out=1)
    t.link("Next one?", "Forgotten job")
    _parameters(t, (8, -2.4))
    return t


def _webhook(t: Template, place: tuple[float, float], method: str, path: str) -> None:
    parameters = {
        "httpMethod": method,
        "path": path,
        "authentication": "headerAuth",
        "responseMode": "responseNode",
        "options": {"rawBody": True} if method == "POST" else {},
    }
    t.node("Webhook", "webhook", place, parameters, webhookId=t.unique("Webhook"), credentials=KEY)


def _config(t: Template, place: tuple[float, float], **more: object) -> None:
    t.config(
        place,
        comfyui_url="={{ $vars.COMFYUI_URL || 'http://comfyui:8188' }}",
        shared_folder="={{ $vars.COMFYFLOW_SHARED || '/data/shared' }}",
        public_url="={{ $vars.COMFYFLOW_PUBLIC_URL || '' }}",
        poll_seconds="5,10,20",
        timeout_seconds=900,
        unreachable_seconds=120,
        download_seconds=600,
        include_temp=False,
        **more,
    )


def _submit(t: Template, column: int) -> None:
    """From `Payload` to `Wait`."""
    t.code("Payload", (column, 0), "comfyui.js", "payload.js")
    t.post("POST /prompt", (column + 1, 0), f"{_SERVER}/prompt", 60, "={{ $json.payload }}")
    t.code("Sent", (column + 2, 0), "comfyui.js", "words.js", "sent.js")
    t.switch("How did it go?", (column + 3, 0), "$json.next", "accepted", "again", "partial", "end")
    t.code("Submitted", (column + 3, -1), "comfyui.js", "rows.js", "accept_rows.js")
    _write(t, "Record submitted", (column + 4, -1), record.SUBMITTED, "Sent")
    t.code("Accepted", (column + 5, -1), "answers.js", "pace.js", "accepted.js")
    t.either("Caller waits?", (column + 6, -1), "$json.wait")
    _respond(t, "Answer 202", (column + 7, -1.4), "$json.early")
    t.node("Wait to send", "wait", (column + 2, 1), _seconds("2"), webhookId=t.unique("Wait to send"))
    t.link("Payload", "POST /prompt", "Sent", "How did it go?", "Submitted", "Record submitted", "Accepted")
    t.link("Accepted", "Caller waits?", "Wait")
    t.link("Caller waits?", "Answer 202", "Wait", out=1)
    t.link("How did it go?", "Wait to send", "Payload", out=1)
    _leave_out(t, column)
    t.link("How did it go?", "End", out=3)


def _leave_out(t: Template, column: int) -> None:
    """ComfyUI took a workflow of which it would run only a part: take it back."""
    deleted = "={{ JSON.stringify({ delete: [$('Sent').first().json.prompt_id] }) }}"
    t.post("Take back", (column + 4, 1), f"{_SERVER}/queue", 15, deleted)
    # ComfyUI 0.26 and newer; older ones answer 405, and run what they can of it.
    cancel = f"{_SERVER}/api/jobs/{{{{ $('Sent').first().json.prompt_id }}}}/cancel"
    t.post("Cancel", (column + 5, 1), cancel, 15, "{}")
    back = {"jsCode": "return [{ json: $('Sent').first().json }];"}
    t.node("Refused in part", "code", (column + 6, 1), back)
    t.link("How did it go?", "Take back", "Cancel", "Refused in part", "End", out=2)


def _follow(t: Template, column: int, *more: str) -> None:
    """The loop, and from its end to the answer. `more` are ways out of it beside those."""
    wait = "={{ $json.wait_seconds }}"
    t.node("Wait", "wait", (column + 2, 0), _seconds(wait), webhookId=t.unique("Wait"))
    t.node("Loop", "noOp", (column + 3, 0), {})
    t.sql("Turn", (column + 4, 0), record.TAKE, _ASKED)
    t.code("Whose", (column + 5, 0), *_LIBRARY, "rows.js", "pace.js", "whose.js")
    t.switch("Who looks?", (column + 6, 0), "$json.next", "look", "wait", "late", "answer")
    t.get("GET /queue", (column + 7, 0), f"{_SERVER}/queue", 15)
    history = f"{_SERVER}/history/{{{{ encodeURIComponent($('Whose').first().json.prompt_id) }}}}"
    t.get("GET /history", (column + 8, 0), history, 15)
    t.code("Evaluate", (column + 9, 0), *_LIBRARY, "words.js", "pace.js", "evaluate.js")
    ways = ("fetch", "wait", "end", "late", "away", "unknown", "answer")
    t.switch("Complete?", (column + 10, 0), "$json.next", *ways, *more)
    t.code("Give up", (column + 11, 2), *_LIBRARY, "late.js")
    t.link(
        "Wait", "Loop", "Turn", "Whose", "Who looks?", "GET /queue", "GET /history", "Evaluate", "Complete?"
    )
    t.link("Who looks?", "Wait", out=1)
    for out in (2, 3):
        t.link("Who looks?", "Give up", out=out)
    t.link("Complete?", "Downloading")
    t.link("Complete?", "Wait", out=1)
    t.link("Complete?", "End", out=2)
    for out in (3, 4, 5, 6):
        t.link("Complete?", "Give up", out=out)
    _fetch(t, column + 11)
    _end(t, column + 19)


def _fetch(t: Template, column: int) -> None:
    """Every file into the shared folder, its size compared, its SHA-256 taken."""
    t.code("Downloading", (column, 0), "comfyui.js", "rows.js", "download_rows.js")
    _write(t, "Record download", (column + 1, 0), record.WRITE, "Evaluate")
    t.code("Files", (column + 2, 0), "comfyui.js", "files.js")
    t.either("Any file?", (column + 3, 0), "!$json.none")
    names = ("filename", "subfolder", "type")
    query = [{"name": name, "value": f"={{{{ $json.{name} }}}}"} for name in names]
    answer = {"fullResponse": True, "neverError": True, "responseFormat": "file"}
    timeout = "={{ $('Config').first().json.download_seconds * 1000 }}"
    parameters = {
        "url": f"{_SERVER}/view",
        "sendQuery": True,
        "queryParameters": {"parameters": query},
        "options": {"timeout": timeout, "response": {"response": answer}},
    }
    t.node("GET /view", "httpRequest", (column + 4, -1), parameters, **GO_ON)
    t.code("Arrived", (column + 5, -1), "comfyui.js", "words.js", "arrived.js")
    t.either("Any whole?", (column + 6, -1), "!$json.none")
    write = {"operation": "write", "fileName": "={{ $json.path }}", "dataPropertyName": "data", "options": {}}
    t.node("Write file", "readWriteFile", (column + 7, -1), write, **GO_ON)
    digest = {"action": "hash", "type": "SHA256", "binaryData": True, "binaryPropertyName": "data"}
    t.node("Hash file", "crypto", (column + 8, -1), {**digest, "dataPropertyName": "sha256"}, **GO_ON)
    t.code("Outcome", (column + 9, 0), *_LIBRARY, "outcome.js")
    t.either("Settled?", (column + 10, 0), "$json.next === 'end'")
    t.link("Downloading", "Record download", "Files", "Any file?", "GET /view", "Arrived", "Any whole?")
    t.link("Any whole?", "Write file", "Hash file", "Outcome", "Settled?", "End")
    t.link("Any file?", "Outcome", out=1)
    t.link("Any whole?", "Outcome", out=1)
    t.link("Settled?", "Wait", out=1)


def _end(t: Template, column: int) -> None:
    """The record, the answer, and the error workflow."""
    t.code("End", (column + 3, 1), "comfyui.js", "rows.js", "end_rows.js")
    _write(t, "Record end", (column + 4, 1), record.END, "End")
    t.code("Reply", (column + 5, 1), *_LIBRARY, "reply.js")
    _respond(t, "Answer", (column + 6, 1), "$json")
    t.either("Alarm?", (column + 7, 1), "$json.alarm")
    told = "$json.body.error?.message ?? $json.body.warning ?? ''"
    what = "'comfyflow: ' + ($json.body.error?.code ?? 'not recorded') + ': ' + (" + told + ")"
    text = "={{ " + what + " + ' (prompt ' + ($json.body.prompt_id ?? '-') + ')' }}"
    t.node("Fail", "stopAndError", (column + 8, 1), {"errorMessage": text})
    t.link("Give up", "End", "Record end", "Reply", "Answer", "Alarm?", "Fail")


def _write(t: Template, name: str, place: tuple[float, float], query: str, job: str) -> None:
    parts = (f"{key}: $('{job}').first().json.{key}" for key in ("prompt_id", "worker", "renamed_from"))
    asked = f"JSON.stringify({{ {', '.join(parts)} }})"
    t.sql(name, place, query, asked, "$json.batch")


def _respond(t: Template, name: str, place: tuple[float, float], reply: str) -> None:
    code = f"={{{{ {reply}.status }}}}"
    body = f"={{{{ JSON.stringify({reply}.body) }}}}"
    parameters = {"respondWith": "json", "responseBody": body, "options": {"responseCode": code}}
    t.node(name, "respondToWebhook", place, parameters)


def _seconds(amount: str) -> dict[str, object]:
    return {"resume": "timeInterval", "amount": amount, "unit": "seconds"}


def _notes(t: Template) -> None:
    later = 'With `"wait": false` the caller gets 202 at once and asks the webhook *comfyflow/status* later.'
    place = "A gateway that calls back would resume a Wait node here, instead of this loop."
    t.note("Note: long jobs", (14, -2.4), f"## Long jobs\n{later}\n\n{place}")


def _parameters(t: Template, place: tuple[float, float]) -> None:
    told = "All are in **Config**. Credentials: *comfyflow PostgreSQL*, *comfyflow webhook key*."
    t.note("Note: parameters", place, f"## Parameters\n{told}")
