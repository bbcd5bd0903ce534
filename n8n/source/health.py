"""The template that asks ComfyUI how it is, and tells when it fails, and when it works again."""

from __future__ import annotations

from template import ALERT, GO_ON, SMTP, Template

# $1 = a row of server_checks, with keep_days: 0 keeps all of them.
RECORD = """
WITH checked AS (
    SELECT c.*, asked.keep_days
    FROM jsonb_populate_record(NULL::server_checks, $1::jsonb) AS c,
        jsonb_to_record($1::jsonb) AS asked (keep_days float8)
), outdated AS (
    DELETE FROM server_checks AS old USING checked
    WHERE keep_days > 0 AND old.server = checked.server
        AND old.checked_at < now() - make_interval(secs => keep_days * 86400)
)
INSERT INTO server_checks (
    server, ok, error, version, queue_running, queue_pending, vram_total, vram_free, ram_total, ram_free,
    mean_seconds
)
SELECT server, ok, error, version, queue_running, queue_pending, vram_total, vram_free, ram_total, ram_free, (
    SELECT avg(r.execution_seconds) FROM workflow_runs AS r
    WHERE r.server = checked.server AND r.state = 'succeeded' AND r.finished_at > now() - interval '1 hour'
)
FROM checked
RETURNING true AS recorded, id::text, mean_seconds
"""


def health() -> Template:
    """Every five minutes: two questions, one row, and a message when something changed for long enough."""
    t = Template(
        "comfyflowHealth1", "comfyflow: health check", errorWorkflow=ALERT, saveDataSuccessExecution="none"
    )
    rule = {"interval": [{"field": "minutes", "minutesInterval": 5}]}
    t.node("Every 5 minutes", "scheduleTrigger", (0, 0), {"rule": rule})
    t.config(
        (1, 0),
        comfyui_url="={{ $vars.COMFYUI_URL || 'http://comfyui:8188' }}",
        failures_before_alert=3,
        min_vram_free_bytes=0,
        keep_days=30,
        **addresses(),
    )
    server = "={{ $('Config').first().json.comfyui_url.trim().replace(/\\/+$/, '') }}"
    t.get("GET /system_stats", (2, 0), f"{server}/system_stats", 15)
    t.get("GET /queue", (3, 0), f"{server}/queue", 15)
    t.code("Check", (4, 0), "comfyui.js", "words.js", "check.js")
    t.sql("Record check", (5, 0), RECORD, "$json.check")
    t.code("Watch", (6, 0), "words.js", "watch.js")
    t.either("News?", (7, 0), "$json.send")
    t.link(
        "Every 5 minutes",
        "Config",
        "GET /system_stats",
        "GET /queue",
        "Check",
        "Record check",
        "Watch",
        "News?",
    )
    send(t, 8, "Watch")
    t.link("News?", "Slack?")
    t.code("Delivered", (12, 0), "words.js", "ways.js", "delivered.js")
    t.either("Undelivered?", (13, 0), "$json.problem !== ''")
    t.node("Fail", "stopAndError", (14, 0), {"errorMessage": "={{ $json.problem }}"})
    t.link("E-mail?", "Delivered", out=1)
    t.link("E-mail", "Delivered", "Undelivered?", "Fail")
    t.note(
        "Note: parameters",
        (0, -1.6),
        "## Parameters\nAll of them are in **Config**; the interval is in **Every 5 minutes**. Messages go to"
        " Slack when `slack_webhook_url` is set (an incoming webhook: its URL is a secret), and to `mail_to`"
        " when that is set. Credentials: *comfyflow PostgreSQL*, *comfyflow SMTP*.",
    )
    return t


def addresses() -> dict[str, str]:
    """The parameters that say who gets messages: nobody, until somebody is named."""
    return {
        "slack_webhook_url": "={{ $vars.COMFYFLOW_SLACK_WEBHOOK_URL || '' }}",
        "mail_from": "={{ $vars.COMFYFLOW_MAIL_FROM || '' }}",
        "mail_to": "={{ $vars.COMFYFLOW_MAIL_TO || '' }}",
    }


def send(t: Template, column: int, message: str) -> None:
    """From `Slack?` to `E-mail?` (its output 1: no e-mail) and `E-mail`: the message of that node goes out,
    as far as addresses are named. One way that fails does not stop the other."""
    config, made = "$('Config').first().json", f"$('{message}').first().json"
    t.either("Slack?", (column, 0), f"!!{config}.slack_webhook_url")
    t.post(
        "Slack", (column + 1, -1), f"={{{{ {config}.slack_webhook_url }}}}", 15, f"={{{{ {made}.slack }}}}"
    )
    t.either("E-mail?", (column + 2, 0), f"!!{config}.mail_to")
    letter = {
        "fromEmail": f"={{{{ {config}.mail_from || {config}.mail_to.split(',')[0].trim() }}}}",
        "toEmail": f"={{{{ {config}.mail_to }}}}",
        "subject": f"={{{{ {made}.subject }}}}",
        "emailFormat": "text",
        "text": f"={{{{ {made}.text }}}}",
        "options": {"appendAttribution": False},
    }
    more = {"webhookId": t.unique("E-mail"), "credentials": SMTP, **GO_ON}
    t.node("E-mail", "emailSend", (column + 3, -1), letter, **more)
    t.link("Slack?", "Slack", "E-mail?", "E-mail")
    t.link("Slack?", "E-mail?", out=1)
