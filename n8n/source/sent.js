// What became of POST /prompt. A request whose answer is missing may be queued all the same: it is looked for,
// never sent again. ComfyUI takes the same prompt id twice and runs both.
const job = $('Payload').first().json;
const answer = $input.first().json;
const status = answer.statusCode;
const SENDS = 4; // requests to a server that is not there, 2 s apart

function go(next, more) {
  const { payload, ...rest } = job;
  return [{ json: { ...rest, next, ...more } }];
}

function end(kind, message, more) {
  return go('end', {
    outcome: { state: 'failed', failure: { message, exception_type: kind, more } },
    told: 'failed',
  });
}

if (status === undefined) {
  const said = String(answer.error?.message ?? answer.error ?? 'no answer');
  const reason = errorIn(answer) || 'no answer';
  const code = String(answer.error?.code ?? answer.error?.cause?.code ?? '') + ' ' + said;
  const never = /ECONNREFUSED|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|refused|getaddrinfo|Invalid URL/i.test(
    code,
  );
  if (never && job.posts < SENDS) return go('again');
  if (never) return end('ServerUnreachable', `ComfyUI at ${job.server} cannot be reached: ${reason}`);
  return go('accepted', { sent: 'maybe', state: 'submitted', wait_seconds: 1 });
}
const body = answer.body ?? null; // what is no JSON is a page of a proxy, or empty
const object = body !== null && typeof body === 'object' && !Array.isArray(body);
if (status === 200 && object && typeof body.prompt_id === 'string') {
  const partial = object && body.node_errors && Object.keys(body.node_errors).length > 0;
  if (partial && !job.allow_partial)
    return go('partial', { prompt_id: body.prompt_id, outcome: refusal(200, body), told: 'failed', sent: 'yes' });
  const renamed = body.prompt_id === job.prompt_id ? {} : { renamed_from: job.prompt_id };
  return go('accepted', {
    sent: 'yes',
    state: 'queued',
    submitted_at: Date.now() / 1000,
    prompt_id: body.prompt_id,
    ...renamed,
  });
}
if (status >= 500 && status !== 503) {
  const doubt = `answered the request with ${status}`; // it may have taken it
  return go('accepted', { sent: 'maybe', state: 'submitted', wait_seconds: 1, doubt });
}
if (status === 503) return end('ServerUnreachable', `a proxy in front of ComfyUI at ${job.server} answers 503`);
if (status === 200) return end('ServerUnreachable', `what answers at ${job.server} is not ComfyUI`);
const refused = status === 400 || status === 413 || (object && body.error);
if (refused) return go('end', { outcome: refusal(status, object ? body : {}), told: 'failed' });
return end('ServerUnreachable', `what answers at ${job.server} says ${status}: is it ComfyUI, and may n8n use it?`);

function refusal(status, body) {
  const error = body.error ?? {};
  const plainErrors = plain(body.node_errors ?? {});
  const message =
    error.message ?? (status === 200 ? 'ComfyUI would run only a part of the workflow' : `ComfyUI answers ${status}`);
  const more = { comfyui_status: status, details: error.details || null, node_errors: plainErrors };
  return { state: 'failed', failure: { message, exception_type: 'WorkflowRejected', more } };
}
