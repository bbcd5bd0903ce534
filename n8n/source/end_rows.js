// The one outcome with its files and its line in the log; or, when the job stays open, only a line.
const job = $input.first().json;
const { outcome, assets = [], told } = job;
if (!outcome) {
  const events = told && job.known ? [eventOf(job, told, { reason: job.reason ?? null })] : [];
  return [{ json: { ...job, batch: batchOf({ events }) } }];
}
const detail = outcome.state === 'succeeded' ? { files: assets.length } : { reason: outcome.failure?.message ?? '' };
const event = { ...eventOf(job, told, detail, outcomeId(job.prompt_id)), ends: true };
const sent = {
  ...eventOf(job, 'submitted', { server: job.server, by: 'n8n' }),
  at: job.submitted_at ?? job.outcome.started_at ?? job.created_at ?? Date.now() / 1000,
};
const was = job.sent === 'yes' || outcome.source === 'history'; // whoever sent it may not have lived to say so
const graph = graphOf(job);
const batch = batchOf({
  runs: [outcomeRun(job)],
  assets: assets.map((file) => assetOf({ ...job, graph }, file)),
  events: was && !job.logged ? [sent, event] : [event],
});
const node = outcome.failure?.node_id;
return [{ json: { ...job, graph: null, node_title: graph && node ? titleOf(graph, node) : null, batch } }];
