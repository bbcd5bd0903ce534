// The files are about to be fetched: nobody else takes the job meanwhile.
const job = $('Evaluate').first().json;
const run = runOf(job, { state: 'finishing' });
const seconds = Number($('Config').first().json.download_seconds) + 60;
const worker = { worker: job.worker, host: 'n8n', pid: 0, place: null, seconds };
return [
  {
    json: {
      batch: batchOf({
        runs: [run],
        events: [eventOf(job, 'download_started', { files: job.outcome.outputs.length })],
        workers: [worker],
      }),
    },
  },
];
