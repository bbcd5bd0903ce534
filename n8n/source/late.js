// Nobody waits any longer. The job stays open: asking for its status, or the rescue, brings it to its end.
const job = $input.first().json;
const waited = Math.round((Date.now() - job.started_at) / 1000);
const more = { state: job.state, recorded: job.known };
if (job.next === 'unknown' && !job.here)
  return end(
    failure(
      503,
      'database_unreachable',
      'the database does not answer, and ComfyUI knows nothing of this job: ask again later',
      job,
      { alarm: false },
    ),
  );
if (job.next === 'unknown')
  return end(failure(404, 'unknown', `neither the record nor ComfyUI knows a job ${job.prompt_id}`, job));
if (job.next === 'answer') return end(job.reply);
if (job.next === 'away')
  return end(
    failure(
      503,
      'comfyui_unreachable',
      `ComfyUI at ${job.server} does not answer: ${job.problem}. The job stays on record: ask for its status later`,
      job,
      { ...more, alarm: !job.once },
    ),
  );
return end(
  failure(504, 'timeout', `the job has not ended after ${waited} s. It goes on: ask for its status later`, job, more),
);

function end(reply) {
  return [{ json: { ...job, reply, outcome: null, assets: [], told: null } }];
}
