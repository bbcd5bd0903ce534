// The workflow of a job: as the caller gave it, as it is on record, or as ComfyUI tells it; or null.
function graphOf(job) {
  return job.graph ?? $('Prepare job').first().json.graph ?? null;
}

// Rows as comfyflow writes them (src/comfyflow/rows.py), for its own SQL statement: one JSON text.
function runOf(job, more) {
  const run = {
    prompt_id: job.prompt_id,
    added: true,
    client_id: job.client_id ?? null,
    server: job.server,
    worker: job.worker,
    ...more,
  };
  const first = {
    created_at: job.created_at,
    graph: job.known ? null : graphOf(job),
    digest: job.digest,
    prompt_text: job.prompt_text ?? null,
    folder: job.folder,
    key: job.key,
  };
  for (const [name, value] of Object.entries(first)) if (value != null) run[name] = value;
  return run;
}

function eventOf(job, kind, detail, id) {
  return {
    event_id: id ?? lineId(job, kind),
    prompt_id: job.prompt_id,
    kind,
    detail,
    at: Date.now() / 1000,
  };
}

// There is one line of a kind for a job, whoever of us writes it.
function lineId(job, kind) {
  return eventId(`n8n/${job.prompt_id}/${kind}`);
}

function outcomeRun(job) {
  const { outcome } = job;
  const at = Date.now() / 1000;
  const { started_at = null, ended_at = null } = outcome;
  const told = {
    outputs: outcome.outputs ?? [],
    texts: outcome.texts ?? [],
    reused_nodes: outcome.reused_nodes ?? [],
    source: 'history',
    started_at,
    ended_at,
  };
  const seconds = started_at !== null && ended_at !== null && ended_at >= started_at ? ended_at - started_at : null;
  const { more, ...failure } = outcome.failure ?? {};
  const error = outcome.state === 'succeeded' ? null : failure;
  return runOf(job, { state: outcome.state, finished_at: at, outcome: told, error, execution_seconds: seconds });
}

function assetOf(job, file) {
  const { path, output_path, filename, subfolder, type, node_id, key, bytes, media_type, sha256, folder } = file;
  const made = job.graph ? traits(job.graph, node_id) : {};
  const known = {
    node_id,
    node_title: job.graph ? titleOf(job.graph, node_id) : null,
    filename,
    subfolder,
    type,
    key,
    sha256,
    bytes,
    media_type,
    folder,
    seed: made.seed,
    model: made.model,
    loras: made.loras?.length ? made.loras : null,
    reused: file.reused,
    server: job.server,
    client_id: job.client_id,
    workflow_digest: job.digest,
  };
  const metadata = Object.fromEntries(Object.entries(known).filter(([, value]) => value != null));
  return {
    prompt_id: job.prompt_id,
    prompt_text: job.prompt_text ?? (job.graph ? promptText(job.graph) : null),
    output_path,
    metadata,
    at: Date.now() / 1000,
  };
}

// PostgreSQL holds neither NUL nor half a character.
function storable(value) {
  if (typeof value === 'string')
    return value.replace(/\0|[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g, '\uFFFD');
  if (Array.isArray(value)) return value.map(storable);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [storable(name), storable(part)]));
}

function batchOf(parts) {
  return writeJson(storable({ runs: [], assets: [], events: [], renames: [], contents: [], workers: [], ...parts }));
}
