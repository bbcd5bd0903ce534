// The job is on the server, or may be. Whoever does not want to wait is answered now.
const job = $('Sent').first().json;
const rows = $input.all().map((item) => item.json);
const recorded = rows[rows.length - 1]?.recorded === true;
const known = recorded || (job.known && !job.renamed_from);
const body = {
  prompt_id: job.prompt_id,
  client_id: job.client_id,
  state: job.state,
  server: job.server,
  recorded,
  status_url: statusUrl(job.prompt_id),
};

return [{ json: { ...job, known, wait_seconds: job.wait_seconds ?? pause(job), early: { status: 202, body } } }];
