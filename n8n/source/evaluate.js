// One look: the queue was read before the history, so a job that is in neither is not on the server.
const job = $('Whose').first().json;
const queue = answer('GET /queue', (value) => Array.isArray(value.queue_running));
const history = answer(
  'GET /history',
  (value) => value[job.prompt_id] === undefined || isObject(value[job.prompt_id]),
);
const ABSENCES = 2; // looks in a row that find nothing; a busy server may still be reading the request

function answer(name, isRight) {
  const item = $(name).first().json;
  if (item.statusCode === undefined) return { problem: errorIn(item) || 'n8n does not say why' };
  if (item.statusCode !== 200) return { problem: `it answers ${name} with ${item.statusCode}` };
  try {
    const value = readJson(item.data ?? '');
    if (isObject(value) && isRight(value)) return { value };
  } catch {
    // a page of a proxy
  }
  return { problem: `what answers ${name} is not ComfyUI` };
}

function go(next, more) {
  return [{ json: { ...job, next, ...more } }];
}

function again(state, more) {
  const wait = more?.wait_seconds ?? pause(job);
  if (job.once && !more?.wait_seconds) return go('answer', { reply: running(job, state, job.known, more?.place) });
  return go(late(job, wait) ? 'late' : 'wait', { state, wait_seconds: wait, absences: 0, away_since: null, ...more });
}

const problem = queue.problem ?? history.problem;
if (problem !== undefined) {
  const away_since = job.away_since ?? Date.now();
  const limit = Number($('Config').first().json.unreachable_seconds);
  if (job.once || (Date.now() - away_since) / 1000 >= limit) return go('away', { problem, away_since });
  return again(job.state, { away_since, absences: 0, wait_seconds: Math.min(pause(job), 5) });
}

const entry = history.value[job.prompt_id];
if (entry) {
  const outcome = { ...entryOutcome(entry), source: 'history' };
  const graph = job.once ? (job.graph ?? checkedGraph(entry.prompt?.[2]).graph ?? null) : null;
  if (outcome.state === 'succeeded') return go('fetch', { outcome, graph, away_since: null });
  return go('end', { outcome, graph, told: outcome.state });
}
const waiting = [...(queue.value.queue_pending ?? [])].sort((a, b) => numberOf(a[0]) - numberOf(b[0]));
if (queue.value.queue_running.some((item) => item[1] === job.prompt_id)) return again('running', { sent: 'yes' });
const place = waiting.findIndex((item) => item[1] === job.prompt_id);
if (place >= 0)
  return again('queued', { sent: 'yes', place: { queue_position: place + queue.value.queue_running.length } });

const absences = job.absences + 1;
const since = job.posted_at === undefined || (Date.now() - job.posted_at) / 1000 > 6;
if (absences < ABSENCES || !since) return again(job.state, { absences, wait_seconds: 2 });
if (!job.known && job.asked) return go('unknown');
if (job.sent !== 'yes' && job.posted_at === undefined && !job.once) {
  // Who was to send it is gone: whoever holds the job now does.
  return job.mine ? go('send') : again(job.state, { absences, wait_seconds: 2 });
}
if (job.sent !== 'yes') {
  const reason = job.posted_at
    ? `ComfyUI at ${job.server} ${job.doubt ?? 'gave no answer to the request'} and knows nothing of the job: nothing says that it runs`
    : 'the job never came to ComfyUI, and whoever was to send it is gone: send it again';
  return go('end', {
    outcome: { state: 'failed', failure: { message: reason, exception_type: 'ServerUnreachable' } },
    told: 'failed',
  });
}
const reason = 'ComfyUI knows nothing of the job any more: it was restarted, or somebody removed it';
return go('end', { outcome: { state: 'lost', failure: { message: reason } }, told: 'lost' });
