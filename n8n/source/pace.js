// How long until the next look, and when to stop looking.
function pause(job) {
  const asked = String($('Config').first().json.poll_seconds)
    .split(',')
    .map(Number)
    .filter((seconds) => seconds > 0);
  const steps = asked.length ? asked : [5, 10, 20];
  return steps[Math.min(job.attempt, steps.length - 1)];
}

function late(job, wait) {
  return (Date.now() - job.started_at) / 1000 + wait > job.timeout_seconds;
}

function running(job, state, recorded, more) {
  const body = {
    prompt_id: job.prompt_id,
    client_id: job.client_id ?? null,
    state,
    server: job.server,
    recorded,
    status_url: statusUrl(job.prompt_id),
    ...more,
  };
  return { status: 202, body, alarm: false };
}
