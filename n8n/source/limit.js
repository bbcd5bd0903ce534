// Send it or only count it? PostgreSQL says so; while it is away, what n8n itself remembers.
const asked = $('Cause').first().json;
const counted = $input.first()?.json ?? {};
const memory = $getWorkflowStaticData('global');
const now = Date.now();
const causes = { ...memory.causes };
const own = causes[asked.cause] ?? { first: now, sent: null, suppressed: 0 };
const due = own.sent === null || own.sent <= now - 1000 * asked.repeat_seconds;
const verdict =
  counted.recorded === true
    ? { send: counted.send, times: Number(counted.count), since: 1000 * Number(counted.since), sent_at: counted.sent_at }
    : { send: due, times: own.suppressed + 1, since: own.sent ?? own.first, sent_at: null };
const sent = verdict.send ? now : own.sent;
causes[asked.cause] = { first: own.first, last: now, sent, suppressed: verdict.send ? 0 : verdict.times };
const kept = Object.entries(causes).sort(([, one], [, other]) => other.last - one.last);
memory.causes = Object.fromEntries(kept.slice(0, 100));
if (!verdict.send) return [{ json: { send: false } }];

const often = `${count(verdict.times, 'time')} since ${moment(verdict.since, now)}`;
const where = asked.id ? `Execution ${asked.id}${asked.url ? `: ${asked.url}` : ''}` : 'No execution was kept.';
const away = counted.recorded === true ? '' : ' (The database is away.)';
const text = `${asked.workflow} failed at "${asked.node}": ${asked.said}\n${often}.${away}\n${where}`;
return [{ json: { ...message(`${asked.workflow} failed: ${cleaned(asked.said, 80)}`, text), ...verdict } }];
