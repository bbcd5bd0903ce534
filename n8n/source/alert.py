"""The error workflow of the others: one message for each cause and interval, with a count."""

from __future__ import annotations

from health import addresses, send
from template import Template

# $1 = {cause, repeat_seconds}. Those that fail at once stand in line at the row, so that one of them sends.
COUNT = """
WITH asked AS (
    SELECT * FROM jsonb_to_record($1::jsonb) AS asked (cause text, repeat_seconds float8)
), earlier AS MATERIALIZED (
    SELECT a.sent_at, a.first_at, a.suppressed FROM alerts AS a JOIN asked USING (cause) FOR UPDATE OF a
), counted AS (
    INSERT INTO alerts AS a (cause, sent_at)
    SELECT asked.cause, now() FROM asked LEFT JOIN earlier ON true
    ON CONFLICT (cause) DO UPDATE SET (last_at, times, sent_at, suppressed) = (
        SELECT greatest(a.last_at, now()), a.times + 1,
            CASE WHEN due THEN now() ELSE a.sent_at END, CASE WHEN due THEN 0 ELSE a.suppressed + 1 END
        FROM asked, LATERAL (SELECT coalesce(
            a.sent_at <= clock_timestamp() - make_interval(secs => asked.repeat_seconds), true
        ) AS due) AS time
    )
    RETURNING a.suppressed = 0 AS send, a.sent_at, a.first_at
)
SELECT true AS recorded, counted.send, counted.sent_at::text AS sent_at,
    coalesce(earlier.suppressed, 0)::int + 1 AS count,
    extract(epoch FROM coalesce(earlier.sent_at, counted.first_at))::float8 AS since
FROM counted LEFT JOIN earlier ON true
"""

# $1 = {cause, sent_at, times}: the message was not delivered, so the next one of this cause is sent.
FORGET = """
WITH asked AS (
    SELECT * FROM jsonb_to_record($1::jsonb) AS asked (cause text, sent_at timestamptz, times bigint)
), forgotten AS (
    UPDATE alerts AS a SET sent_at = NULL, suppressed = a.suppressed + asked.times
    FROM asked WHERE a.cause = asked.cause AND a.sent_at = asked.sent_at
)
SELECT true AS recorded
"""


def alert() -> Template:
    """From the error of any workflow to Slack and e-mail."""
    t = Template("comfyflowAlert01", "comfyflow: error alert")
    t.node("Error Trigger", "errorTrigger", (0, 0), {})
    t.config((1, 0), repeat_minutes=60, **addresses())
    t.code("Cause", (2, 0), "words.js", "cause.js")
    t.sql("Count", (3, 0), COUNT, "$json.asked")
    t.code("Limit", (4, 0), "words.js", "limit.js")
    t.either("Send?", (5, 0), "$json.send")
    t.link("Error Trigger", "Config", "Cause", "Count", "Limit", "Send?", "Slack?")
    send(t, 6, "Limit")
    t.code("Told", (10, 0), "words.js", "ways.js", "told.js")
    t.either("Undelivered?", (11, 0), "$json.problem !== ''")
    t.sql("Forget", (12, 0), FORGET, "$json.lost")
    t.code("Undelivered", (13, 0), "words.js", "undelivered.js")
    t.node("Fail", "stopAndError", (14, 0), {"errorMessage": "={{ $json.problem }}"})
    t.link("E-mail?", "Told", out=1)
    t.link("E-mail", "Told", "Undelivered?", "Forget", "Undelivered", "Fail")
    t.note(
        "Note: parameters",
        (0, -1.6),
        "## Parameters\nAll of them are in **Config**. Messages go to Slack when `slack_webhook_url` is set"
        " (an incoming webhook: its URL is a secret), and to `mail_to` when that is set: one for each cause"
        " within `repeat_minutes`. Credentials: *comfyflow PostgreSQL*, *comfyflow SMTP*. n8n 2.x calls this"
        " workflow only when it is published.",
    )
    return t
