// Alert or not? What was seen before is in n8n itself, so that this works without the database.
const config = $('Config').first().json;
const check = $('Check').first().json;
const saved = $input.first()?.json ?? {};
const memory = $getWorkflowStaticData('global');
const limit = Math.max(1, Math.floor(Number(config.failures_before_alert)) || 1);
const least = Number(config.min_vram_free_bytes) || 0;
const now = Date.now();

const before = memory.server === check.server ? (memory.watched ?? {}) : {};
const watched = {};
const news = [];
look('ComfyUI', `ComfyUI at ${check.server}`, check.error, 'answers again');
if (check.ok && check.vram_free !== null && least > 0) {
  const short = check.vram_free < least ? `has only ${gibibytes(check.vram_free)} of video memory free` : null;
  look('memory', `ComfyUI at ${check.server}`, short, `has ${gibibytes(check.vram_free)} of video memory free again`);
} else if (before.memory && least > 0) {
  watched.memory = before.memory;
}
look('database', 'The database', databaseProblem(), 'takes records again');

memory.server = check.server;
memory.watched = watched;
// What nobody got is sent with the next check (delivered.js).
const outbox = [...(memory.outbox ?? []), ...news].slice(-10);
memory.outbox = outbox;
if (outbox.length === 0) return [{ json: { send: false } }];
return [{ json: message(`comfyflow: ${outbox[0].subject}`, outbox.map((one) => one.text).join('\n')) }];

// A message when something failed `limit` times in a row, and one when it works again.
function look(name, who, problem, works) {
  const old = before[name];
  if (problem === null) {
    if (!old?.told) return;
    const long = `It was away for ${minutes(now - old.since)}, since ${moment(old.since, now)}`;
    const text = `${who} ${works}. ${long} (${count(old.failures, 'check')}; the last one: ${old.error}).`;
    news.push({ subject: `${name} is well again`, text });
    return;
  }
  const failures = (old?.failures ?? 0) + 1;
  const since = old?.since ?? now;
  watched[name] = { failures, since, error: problem, told: failures >= limit };
  if (failures < limit || old?.told) return;
  const row = failures === 1 ? '' : `, ${failures} checks in a row`;
  news.push({ subject: `${name} needs a look`, text: `${who} ${problem} (since ${moment(since, now)}${row}).` });
}

function databaseProblem() {
  if (saved.recorded === true) return null;
  const said = 'ok' in saved && 'check' in saved ? '' : errorIn(saved); // away: n8n hands on what came in
  return said ? `did not take the record of a check: ${said}` : 'cannot be reached';
}

function gibibytes(bytes) {
  return `${(bytes / 1024 ** 3).toFixed(1)} GiB`;
}

function minutes(milliseconds) {
  const whole = Math.round(milliseconds / 60000);
  if (whole < 1) return 'less than a minute';
  return whole < 120 ? count(whole, 'minute') : count(Math.round(whole / 60), 'hour');
}
