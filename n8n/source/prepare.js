// From the request to one job, or to the 400 that says what is wrong with it. The body is taken as text:
// JavaScript would round a seed of 64 bits.
const config = $('Config').first().json;
const hook = $('Webhook').first();
const headers = hook.json.headers ?? {};

function refused(message) {
  return [{ json: { ok: false, ...failure(400, 'invalid_input', message, null) } }];
}

const text = hook.binary?.data ? (await this.helpers.getBinaryDataBuffer(0, 'data')).toString('utf8') : '';
const read = bodyOf(text);
if (read.problem) return refused(read.problem);
const { body, graph } = read;

const key = headers['idempotency-key'];
if (key !== undefined && (key.trim() === '' || key.length > 200)) {
  return refused(
    'the header Idempotency-Key must hold 1 to 200 characters: leave it out, or name the order that this job is for',
  );
}
for (const name of ['wait', 'allow_partial']) {
  if (name in body && typeof body[name] !== 'boolean') return refused(`"${name}" must be true or false`);
}
const limit = Number(config.timeout_seconds);
const timeout =
  'timeout_seconds' in body ? (isNumber(body.timeout_seconds) ? numberOf(body.timeout_seconds) : NaN) : limit;
if (!(timeout > 0)) return refused('"timeout_seconds" must be a number of seconds above 0');
const extra = body.extra_data ?? {};
if (typeof extra !== 'object' || Array.isArray(extra)) return refused('"extra_data" must be an object');

const first = key === undefined ? randomId() : keyId(key);
const ids = [first];
while (key !== undefined && ids.length < 50) ids.push(againId(ids[ids.length - 1])); // of jobs that never came to the server
const async = /(^|[,;\s])respond-async($|[,;\s])/i.test(headers.prefer ?? '');
const job = {
  ok: true,
  prompt_id: first,
  ids,
  key: key ?? null,
  worker: randomId(),
  client_id: `n8n-${$execution.id}-${randomId().slice(0, 8)}`,
  server: serverOf(config),
  folder: String(config.shared_folder).replace(/\/+$/, ''),
  graph,
  digest: sha256(canonical(graph)),
  prompt_text: promptText(graph),
  extra_data: extra,
  allow_partial: body.allow_partial ?? false,
  wait: body.wait ?? (async ? false : config.wait_by_default !== false),
  timeout_seconds: Math.min(timeout, limit),
  created_at: Date.now() / 1000,
  once: false,
  known: false,
};
const { graph: _, extra_data: __, ...begin } = storable({ ...job, seconds: 120 });
return [{ json: { ...job, begin: writeJson(begin), graph_text: writeJson(storable(graph)) } }];

// The body is {"workflow": graph, ...}, or what POST /prompt takes, or the bare graph.
function bodyOf(text) {
  if (text.trim() === '')
    return { problem: 'the body is empty: send JSON like {"workflow": {...}}, with the workflow in API format' };
  let value;
  try {
    value = readJson(text);
  } catch (error) {
    return { problem: error.message };
  }
  const isObject = value !== null && typeof value === 'object' && !Array.isArray(value);
  const named =
    isObject &&
    ('workflow' in value || (value.prompt && typeof value.prompt === 'object' && !('class_type' in value.prompt)));
  let source = named ? (value.workflow ?? value.prompt) : value;
  if (typeof source === 'string') {
    try {
      source = readJson(source);
    } catch (error) {
      return { problem: `"workflow" is a text, and ${error.message}` };
    }
  }
  const { graph, problem } = checkedGraph(source);
  return problem ? { problem } : { graph, body: named ? value : {} };
}
