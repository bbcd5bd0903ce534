// The server took the job, or may have.
const job = $('Sent').first().json;
const run = runOf(job, { state: job.state, submitted_at: job.submitted_at });
const events = job.sent === 'yes' ? [eventOf(job, 'submitted', { server: job.server, by: 'n8n' })] : [];
return [{ json: { batch: batchOf({ runs: [run], events }) } }];
