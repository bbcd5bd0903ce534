// The job that is asked about, or, behind the schedule, one that was forgotten.
const config = $('Config').first().json;
const asked = $('Webhook').isExecuted;
const forgotten = asked ? null : $input.first().json;
if (!asked && (forgotten.recorded !== true || !forgotten.prompt_id)) return [];

const id = asked ? ($('Webhook').first().json.query ?? {}).prompt_id : forgotten.prompt_id;
if (typeof id !== 'string' || id.trim() === '' || id.length > 500) {
  return [{ json: { ok: false, ...failure(400, 'invalid_input', 'say which job: ?prompt_id=ID', null) } }];
}
return [
  {
    json: {
      ok: true,
      prompt_id: id,
      worker: randomId(),
      client_id: null,
      server: serverOf(config),
      folder: String(config.shared_folder).replace(/\/+$/, ''),
      graph: null,
      digest: null,
      prompt_text: null,
      known: false,
      asked,
      once: true,
      state: 'submitted',
      sent: 'maybe',
      attempt: 0,
      absences: 0,
      downloads: 0,
      started_at: Date.now(),
      timeout_seconds: 60,
      wait_seconds: 1,
    },
  },
];
