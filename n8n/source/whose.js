// Behind "Turn": the record says whether the job has ended, and who follows it. One execution follows a job;
// others with the same key, or that ask for its status, wait for what that one records.
const SEEN = ['queued', 'running', 'finishing'];
const before = $('Loop').first().json;
const rows = $input.all().map((item) => item.json);
const row = rows[rows.length - 1] ?? {};
const here = row.recorded === true; // else the database is away, and the job is followed all the same
const known = here ? row.prompt_id != null : before.known;
const job = { ...before, known, here, mine: here && row.mine === true, attempt: before.attempt + 1 };
if (here && known)
  Object.assign(job, {
    client_id: row.client_id ?? job.client_id,
    digest: row.digest ?? job.digest,
    sent: row.sent || SEEN.includes(row.state) ? 'yes' : job.sent,
    logged: row.sent,
    submitted_id: lineId(job, 'submitted'),
  });
if (here && known && !job.graph && row.graph) job.graph = readJson(row.graph);

function go(next, more) {
  return [{ json: { ...job, next, ...more } }];
}

if (here && known && ENDS.includes(row.state)) {
  const quiet = row.state !== 'succeeded' ? { alarm: false } : job.once ? {} : { replayed: true };
  return go('answer', {
    reply: answerOf({ ...job, ...row, attempt: job.attempt }, recordOf(row), { recorded: true, ...quiet }),
  });
}
if (here && known && !row.mine) {
  const state = row.state;
  if (job.once) return go('answer', { reply: running({ ...job, server: row.server ?? job.server }, state, true) });
  return go(late(job, job.wait_seconds) ? 'late' : 'wait', { state, wait_seconds: pause(job) });
}
return go('look');
