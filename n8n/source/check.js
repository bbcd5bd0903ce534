// From two answers of ComfyUI to one row of server_checks.
const config = $('Config').first().json;
const stats = answered('GET /system_stats', (value) => isObject(value.system));
const queue = answered(
  'GET /queue',
  (value) => Array.isArray(value.queue_running) && Array.isArray(value.queue_pending),
);
const devices = Array.isArray(stats.value?.devices) ? stats.value.devices.filter(isObject) : [];
const error = stats.problem ?? queue.problem ?? null;
const row = {
  server: cleaned(String(config.comfyui_url).trim().replace(/\/+$/, ''), 500) || '-',
  ok: error === null,
  error,
  version: cleaned(stats.value?.system.comfyui_version ?? '', 100) || null,
  queue_running: queue.value?.queue_running.length ?? null,
  queue_pending: queue.value?.queue_pending.length ?? null,
  vram_total: sum(devices.map((device) => device.vram_total)),
  vram_free: sum(devices.map((device) => device.vram_free)),
  ram_total: sum([stats.value?.system.ram_total]),
  ram_free: sum([stats.value?.system.ram_free]),
};
return [{ json: { ...row, check: JSON.stringify({ ...row, keep_days: Number(config.keep_days) || 0 }) } }];

// {value}, or {problem}: what comes behind "ComfyUI at ...".
function answered(name, isRight) {
  const answer = $(name).first()?.json ?? {};
  if (typeof answer.statusCode !== 'number') {
    return { problem: `does not answer: ${errorIn(answer) || 'n8n does not say why'}` };
  }
  if (answer.statusCode !== 200) return { problem: `answers ${name} with ${answer.statusCode}` };
  let value;
  try {
    value = readJson(answer.data ?? '');
  } catch (error) {
    return { problem: `does not answer ${name} as ComfyUI does: ${cleaned(error, 150)}` };
  }
  if (isObject(value) && isRight(value)) return { value };
  return { problem: `does not answer ${name} as ComfyUI does` };
}

// Bytes, or null when they are not known.
function sum(values) {
  const numbers = values.map((value) => (isNumber(value) ? Math.round(numberOf(value)) : NaN));
  const all = numbers.reduce((one, other) => one + other, 0);
  return numbers.length && Number.isSafeInteger(all) && all >= 0 ? all : null;
}
