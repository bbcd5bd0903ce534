// What the webhooks answer: one shape for all. Every node of these templates that makes an answer gives
// {status, body, alarm}: the HTTP status, the JSON body, and whether the error workflow is to hear of it.

function failure(status, code, message, job, more) {
  const { state = null, recorded = false, alarm = status >= 500, ...rest } = more ?? {};
  const body = { error: { code, message, ...rest }, prompt_id: job?.prompt_id ?? null, state, recorded };
  if (body.prompt_id && status >= 500) body.status_url = statusUrl(body.prompt_id);
  return { status, body, alarm };
}

function statusUrl(promptId) {
  const base = String($('Config').first().json.public_url ?? '').replace(/\/+$/, '');
  return `${base}/webhook/comfyflow/status?prompt_id=${encodeURIComponent(promptId)}`;
}

// The server as it is recorded and told: without a user name and a password.
function serverOf(config) {
  return String(config.comfyui_url).trim().replace(/\/+$/, '').replace(/\/\/[^/@]*@/, '//');
}

// The answer about an outcome: {state, failure, texts, execution_seconds, assets, ...}.
function answerOf(job, outcome, more) {
  if (outcome.state === 'succeeded') return success(job, outcome, more);
  const told = outcome.failure ?? { message: 'the record does not say why' };
  const kind = KINDS[told.exception_type];
  if (kind) return failure(kind[0], kind[1], told.message, job, { state: outcome.state, ...more, ...told.more });
  if (outcome.state === 'cancelled')
    return failure(502, 'cancelled', told.message, job, { state: 'cancelled', ...node(told), ...more });
  if (outcome.state === 'lost') return failure(502, 'lost', told.message, job, { state: 'lost', ...more });
  return failure(502, 'execution_failed', told.message, job, {
    state: 'failed',
    ...node(told),
    node_title: job.node_title ?? null,
    exception_type: told.exception_type ?? null,
    ...more,
  });
}

const KINDS = {
  WorkflowRejected: [422, 'workflow_refused'],
  ServerUnreachable: [503, 'comfyui_unreachable'],
  OutputUnavailable: [502, 'download_failed'],
};

function node(told) {
  return { node_id: told.node_id ?? null, node_type: told.node_type ?? null };
}

function success(job, outcome, more) {
  const { recorded = false, ...rest } = more ?? {};
  const body = {
    prompt_id: job.prompt_id,
    client_id: job.client_id ?? null,
    state: 'succeeded',
    server: job.server,
    recorded,
    attempts: job.attempt ?? 0,
    execution_seconds: outcome.execution_seconds ?? null,
    assets: (outcome.assets ?? []).map(asset),
    texts: (outcome.texts ?? []).map(({ node_id, key, text }) => ({ node_id, key, text })),
    ...rest,
  };
  return { status: 200, body, alarm: false };
}

// One file, from what this execution saved or from a row of generated_assets with its metadata.
function asset(row) {
  const folder = row.folder ? String(row.folder).replace(/\/+$/, '') : null;
  const path =
    row.path ??
    (folder && !/^([a-z]+:)?\//i.test(row.output_path) ? `${folder}/${row.output_path}` : row.output_path);
  const pick = (name) => row[name] ?? null;
  return {
    id: row.id == null ? null : Number(row.id),
    node_id: pick('node_id'),
    filename: pick('filename'),
    subfolder: row.subfolder ?? '',
    type: row.type ?? 'output',
    key: pick('key'),
    output_path: row.output_path,
    path,
    media_type: pick('media_type'),
    bytes: row.bytes == null ? null : numberOf(row.bytes),
    sha256: pick('sha256'),
  };
}

// A row of workflow_runs (see record.py) as {state, failure, ...}: `error`, `outcome` and `assets` are JSON text.
function recordOf(row) {
  const read = (text) => (text == null ? null : readJson(text));
  const outcome = read(row.outcome) ?? {};
  return {
    state: row.state,
    failure: read(row.error),
    texts: outcome.texts ?? [],
    execution_seconds: row.execution_seconds ?? null,
    assets: read(row.assets) ?? [],
  };
}

const ENDS = ['succeeded', 'failed', 'cancelled', 'lost'];
