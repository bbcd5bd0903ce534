"""Calls of the template `generate` and what is outside meanwhile, for test_n8n_generate.py."""

from __future__ import annotations

import json
from typing import Any

from n8n_mimic import (
    ASSET,
    AWAY,
    GRAPH,
    done,
    exchanges,
    file,
    generate,
    got,
    image,
    no_answer,
    queue,
    recorded_history,
    row,
    took,
)

NOTHING = got({})
HTML = "<html><body>502 Bad Gateway</body></html>"
REFUSED = no_answer("ECONNREFUSED", "The service refused the connection - perhaps it is offline")
RESET = no_answer("ECONNRESET", "socket hang up")
ERRORS_07 = [
    line for line in exchanges("0.27.0/07_validation_errors", "POST", "/prompt") if line["status"] == 400
]
REJECTED = [line for line in ERRORS_07 if "response_json" in line]
(PARTIAL,) = [
    line["response_json"]
    for line in exchanges("0.27.0/07_validation_errors", "POST", "/prompt")
    if line["status"] == 200 and line["response_json"]["node_errors"]
]
MEDIA = [n for n, line in enumerate(exchanges("0.27.0/18_media_outputs", "GET", "/history/.+"))]
UI_GRAPH = {"nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4}

BAD_CALLS: dict[str, tuple[Any, dict[str, str], str]] = {
    "nothing": ("", {}, "the body is empty"),
    "no JSON": ("{workflow: 1}", {}, "not JSON"),
    "half a JSON": ('{"workflow": {"3": ', {}, "not JSON"),
    "a page": (HTML, {}, "not JSON"),
    "a list": ([GRAPH], {}, ""),
    "a number": (7, {}, ""),
    "null": (None, {}, ""),
    "no workflow": ({"workflow": None}, {}, ""),
    "an empty workflow": ({"workflow": {}}, {}, ""),
    "the format of the editor": ({"workflow": UI_GRAPH}, {}, "API"),
    "the format of the editor, bare": (UI_GRAPH, {}, "API"),
    "a node without class_type": ({"workflow": {"3": {"inputs": {}}}}, {}, "class_type"),
    "a node without inputs": ({"workflow": {"3": {"class_type": "A"}}}, {}, "inputs"),
    "a link to nothing": ({"workflow": {"3": {"class_type": "A", "inputs": {"x": ["8", 0]}}}}, {}, "8"),
    "a text that is no workflow": ({"workflow": "hello"}, {}, '"workflow" is a text'),
    "a key without letters": ({"workflow": GRAPH}, {"idempotency-key": "  "}, "Idempotency-Key"),
    "a key that is too long": ({"workflow": GRAPH}, {"idempotency-key": "k" * 201}, "Idempotency-Key"),
    "wait that is no truth": ({"workflow": GRAPH, "wait": "yes"}, {}, '"wait"'),
    "allow_partial that is no truth": ({"workflow": GRAPH, "allow_partial": 1}, {}, '"allow_partial"'),
    "no time at all": ({"workflow": GRAPH, "timeout_seconds": 0}, {}, '"timeout_seconds"'),
    "a time in words": ({"workflow": GRAPH, "timeout_seconds": "60"}, {}, '"timeout_seconds"'),
    "a list of extra data": ({"workflow": GRAPH, "extra_data": []}, {}, '"extra_data"'),
    "extra data that is null": ({"workflow": GRAPH, "extra_data": 5}, {}, '"extra_data"'),
}

GOOD_CALLS: dict[str, Any] = {
    "workflow": {"workflow": GRAPH},
    "prompt": {"prompt": GRAPH},
    "the bare graph": GRAPH,
    "a text": {"workflow": json.dumps(GRAPH)},
    "an export in an export": {"workflow": {"prompt": GRAPH}},
    "a byte order mark": "\ufeff" + json.dumps({"workflow": GRAPH}),
}

HOSTILE = [
    "../../etc/passwd",
    "..",
    ".hidden",
    "a b c.png",
    "é 画像.png",
    "nul\0.png",
    "x" * 300 + ".png",
    "a/b\\c.png",
]
SAME = [
    image("a.png", subfolder="one"),
    image("a.png", subfolder="two"),
    image("a.png", type="output", subfolder="3"),
]
KEY = {"idempotency-key": "order 7"}
ERROR = {
    "message": "out of memory",
    "node_id": "3",
    "node_type": "KSampler",
    "exception_type": "RuntimeError",
}
ENDED = {"state": "succeeded", "mine": False, "assets": json.dumps([ASSET])}

NAN = got(
    '{"%prompt_id%": {"prompt": [1, "%prompt_id%", {}, {}, []], "outputs": {"9": {"images": [{"filename":'
    ' "a.png", "subfolder": "", "type": "output"}], "score": [NaN, -Infinity]}},'
    ' "status": {"status_str": "success", "completed": true, "messages": []}}}'
)

CASES: dict[str, dict[str, Any]] = {
    "one image": generate(history=recorded_history("0.27.0/01_success_single_image")),
    "three images": generate(history=recorded_history("0.27.0/04_batch_of_3_images")),
    "two nodes, one of them temporary": generate(history=recorded_history("0.27.0/05_two_output_nodes")),
    "temporary files too": generate(
        history=recorded_history("0.27.0/05_two_output_nodes"), config={"include_temp": True}
    ),
    "all from the cache": generate(history=recorded_history("0.27.0/06_all_cached_resubmission", 1)),
    "NaN in the outputs": generate(history=NAN),
    "no file at all": generate(history=done({})),
    "only a text": generate(history=recorded_history("0.27.0/18_media_outputs", 5)),
    "an old server": generate(history=recorded_history("0.3.64/01_success_single_image")),
    "an execution error": generate(history=recorded_history("0.27.0/08_execution_error")),
    "an execution error of an old server": generate(history=recorded_history("0.3.64/08_execution_error")),
    "interrupted": generate(history=recorded_history("0.27.0/10_interrupt_running")),
    "lost": generate(history=NOTHING),
    "lost after a while": generate(queue=[queue(["%prompt_id%"])] * 3 + [queue()], history=NOTHING),
    "the queue, then the history": generate(
        queue=[queue(["x"], ["y", "%prompt_id%"]), queue(["%prompt_id%"]), queue()],
        history=[NOTHING, NOTHING, done({"9": {"images": [image()]}})],
    ),
    "a long job": generate(queue=queue(["%prompt_id%"]), history=NOTHING),
    "a short patience": generate(
        {"workflow": GRAPH, "timeout_seconds": 30}, queue=queue(["%prompt_id%"]), history=NOTHING
    ),
    "more patience than allowed": generate(
        {"workflow": GRAPH, "timeout_seconds": 1e9}, queue=queue(["%prompt_id%"]), history=NOTHING
    ),
    "another schedule": generate(
        queue=[queue(["%prompt_id%"])] * 4 + [queue()],
        history=[NOTHING] * 4 + [done({})],
        config={"poll_seconds": "1,2"},
    ),
    "a schedule in words": generate(
        queue=[queue(["%prompt_id%"])] * 2 + [queue()],
        history=[NOTHING] * 2 + [done({})],
        config={"poll_seconds": "often"},
    ),
    "refused in part": generate(
        post=took(PARTIAL | {"prompt_id": "%prompt_id%"}), take_back=took(""), cancel=took({})
    ),
    "refused in part, cancel unknown": generate(
        post=took(PARTIAL | {"prompt_id": "%prompt_id%"}),
        take_back=RESET,
        cancel=took("405: Method Not Allowed", 405),
    ),
    "a part is enough": generate(
        {"workflow": GRAPH, "allow_partial": True}, post=took(PARTIAL | {"prompt_id": "%prompt_id%"})
    ),
    "nobody there": generate(post=REFUSED),
    "no such host": generate(post=no_answer("ENOTFOUND", "getaddrinfo ENOTFOUND comfyui")),
    "there at the third time": generate(
        post=[REFUSED, REFUSED, took({"prompt_id": "%prompt_id%", "number": 1, "node_errors": {}})]
    ),
    "the answer got lost": generate(post=RESET, turn=row(state="submitted")),
    "the request got lost": generate(post=RESET, turn=row(state="submitted"), history=NOTHING),
    "no answer in time": generate(
        post=no_answer("ECONNABORTED", "timeout of 60000ms exceeded"),
        turn=row(state="submitted"),
        queue=[queue([], ["%prompt_id%"]), queue()],
        history=[NOTHING, done({})],
    ),
    "a page for an answer": generate(post=took(HTML)),
    "a proxy without a server": generate(post=took(HTML, 502), turn=row(state="submitted"), history=NOTHING),
    "a proxy that is not ready": generate(post=took(HTML, 503)),
    "a server in trouble, job queued": generate(
        post=took("500 Internal Server Error", 500), turn=row(state="submitted")
    ),
    "forbidden": generate(
        post=took({"error": {"message": "not allowed here", "type": "x", "details": ""}}, 403)
    ),
    "null for an answer": generate(post=took(None)),
    "away for a minute": generate(queue=[REFUSED] * 10 + [queue()]),
    "away for ever": generate(queue=REFUSED),
    "a page for the queue": generate(queue=[got(HTML), queue()]),
    "a page for the history": generate(history=[got(HTML), got(HTML, 502), done({})]),
    "another program": generate(queue=[got({"jobs": []})]),
    "another id": generate(
        post=took({"prompt_id": "srv-1", "number": 1, "node_errors": {}}),
        turn=row(prompt_id="srv-1", state="queued", sent=True),
        queue=queue(["srv-1"]),
        history=NOTHING,
    ),
    "no waiting": generate({"workflow": GRAPH, "wait": False}),
    "no waiting by header": generate(headers={"prefer": "respond-async, wait=5"}),
    "waiting in spite of the header": generate(
        {"workflow": GRAPH, "wait": True}, {"prefer": "respond-async"}
    ),
    "no waiting by default": generate(config={"wait_by_default": False}),
    "a key for the first time": generate(headers=KEY),
    "a key for the second time": generate(headers=KEY),
    "a key that was used": generate(headers=KEY, begin=row(**ENDED)),
    "a key of another workflow": generate(
        headers=KEY, begin=row(mine=False, digest="0" * 64, state="running")
    ),
    "a key on another server": generate(
        headers=KEY, begin=row(mine=False, server="http://other:8188", state="running")
    ),
    "a key of a job that failed": generate(
        headers=KEY, begin=row(mine=False, state="failed", error=json.dumps(ERROR))
    ),
    "a key that another execution follows": generate(
        headers=KEY,
        begin=row(mine=False, state="running"),
        turn=[row(mine=False, state="running")] * 3 + [row(**ENDED)],
    ),
    "a key that another execution follows, no waiting": generate(
        {"workflow": GRAPH, "wait": False}, KEY, begin=row(mine=False, state="running")
    ),
    "a key without the database": generate(headers=KEY, begin=AWAY),
    "no database": generate(begin=AWAY, submitted=AWAY, turn=AWAY, download=AWAY, end=AWAY),
    "no database, no waiting": generate(
        {"workflow": GRAPH, "wait": False}, begin=AWAY, submitted=AWAY, turn=AWAY, download=AWAY, end=AWAY
    ),
    "no database, and lost": generate(
        begin=AWAY, submitted=AWAY, turn=AWAY, download=AWAY, end=AWAY, history=NOTHING
    ),
    "the database is away at the end": generate(end={"json": {"error": {"message": "connection lost"}}}),
    "one file is gone": generate(
        history=done({"9": {"images": [image("a.png"), image("b.png")]}}), view=[[file(), file(status=404)]]
    ),
    "a file is short, then whole": generate(view=[file(3, told=4), file()]),
    "a file is always short": generate(view=file(3, told=4)),
    "a page instead of a file": generate(view=file(mime="text/html; charset=utf-8")),
    "no answer for a file": generate(view=RESET),
    "a folder that is closed": generate(write={"pass": {"error": "Access to the file is not allowed"}}),
    "a file that cannot be read back": generate(hash={"pass": {"error": "no such file"}}),
    "files of one name": generate(history=done({"9": {"images": SAME}})),
    "hostile names": generate(history=done({"9": {"images": [image(name) for name in HOSTILE]}})),
    "hostile node ids": generate(history=done({"../../9": {"images": [image()]}})),
    "a slash at the end": generate(
        config={
            "comfyui_url": "http://gpu:1/",
            "shared_folder": "/mnt/x/",
            "public_url": "https://a.example/",
        },
        queue=queue(["%prompt_id%"]),
        history=NOTHING,
    ),
    "NUL in the workflow": generate(
        {"workflow": GRAPH | {"5": {"class_type": "T", "inputs": {"text": "a\0b\ud800"}}}}
    ),
}
HERE, AWAY_NOW = queue(["%prompt_id%"]), queue()
END = done({"9": {"images": [image()]}})
CASES |= {
    "one look misses it": generate(queue=[HERE, AWAY_NOW], history=[NOTHING, NOTHING, END]),
    "two looks miss it, not in a row": generate(
        queue=[HERE, AWAY_NOW, HERE, AWAY_NOW], history=[NOTHING, NOTHING, NOTHING, NOTHING, END]
    ),
    "a server that is slow to queue": generate(
        post=RESET, turn=row(state="submitted"), history=[NOTHING, NOTHING, END]
    ),
    "one file is gone, another short": generate(
        history=done({"9": {"images": [image("a.png"), image("b.png")]}}),
        view=[[file(3, told=4), file(status=404)]],
    ),
    "the record refuses a file": generate(
        end=[[{"json": {"refused": "a.png"}}, row(state="succeeded", assets="[]")]]
    ),
}
CASES |= {
    f"bad: {name}": generate(body if body is not None else "null", headers)
    for name, (body, headers, _) in BAD_CALLS.items()
}
CASES |= {f"good: {name}": generate(body) for name, body in GOOD_CALLS.items()}
CASES |= {f"rejected {n}": generate(post=took(line["response_json"], 400)) for n, line in enumerate(REJECTED)}
CASES |= {f"media {n}": generate(history=recorded_history("0.27.0/18_media_outputs", n)) for n in MEDIA}
