// All files are here, or some are not: what this execution says of the job.
const job = $('Evaluate').first().json;
const DOWNLOADS = 3; // attempts
const arrived = $('Files').first().json.none ? [] : $('Arrived').all();
const whole = arrived.filter((item) => !item.json.none);
const faults = arrived[0]?.json.faults ?? [];
const written = whole.length ? $('Write file').all() : [];
const hashed = whole.length ? $('Hash file').all() : [];

const assets = [];
let storage = null;
whole.forEach(({ json }, index) => {
  const fault =
    written[index]?.json.error ??
    (hashed[index]?.json.sha256 ? null : (hashed[index]?.json.error ?? 'it was not written'));
  if (fault) storage = storage ?? `${json.path} could not be written: ${fault?.message ?? fault}`;
  else assets.push({ ...json, faults: undefined, sha256: hashed[index].json.sha256, folder: job.folder });
});

function go(next, more) {
  return [{ json: { ...job, next, assets, ...more } }];
}

if (storage) {
  const reply = failure(
    500,
    'storage_failed',
    `${storage}. The file is still on ComfyUI: make the folder writable for n8n, then ask for the status`,
    job,
    { state: job.state, recorded: job.known },
  );
  return go('end', { outcome: null, assets: [], told: 'download_failed', reason: storage, reply });
}
if (faults.length) {
  const downloads = job.downloads + 1;
  if (downloads < DOWNLOADS) return go('wait', { downloads, wait_seconds: 2, assets: [] });
  const message = `${faults.length} of the job's files could not be fetched: ${faults[0].filename}: ${faults[0].reason}`;
  const listed = faults.map(({ filename, reason }) => ({ filename, reason }));
  if (faults.every((fault) => fault.gone)) {
    const failed = { message, exception_type: 'OutputUnavailable', more: { files: listed } };
    return go('end', { outcome: { ...job.outcome, state: 'failed', failure: failed }, told: 'failed' });
  }
  const reply = failure(502, 'download_failed', message, job, {
    state: job.state,
    recorded: job.known,
    files: listed,
  });
  return go('end', { outcome: null, assets: [], told: 'download_failed', reason: message, reply });
}
return go('end', { told: 'finished' });
