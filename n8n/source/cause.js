// What failed, and its cause: what is left without ids and numbers, which differ each time.
const config = $('Config').first().json;
const execution = config.execution ?? {};
const error = execution.error ?? config.trigger?.error ?? {};
const workflow = cleaned(config.workflow?.name ?? config.workflow?.id ?? 'a workflow', 100);
const node = cleaned(execution.lastNodeExecuted ?? error.node?.name ?? (config.trigger ? 'its trigger' : '?'), 100);
const said = cleaned(error) || 'no message';
const cause = `${workflow}: ${node}: ${alike(said)}`;
const asked = { cause, repeat_seconds: 60 * Math.max(0, Number(config.repeat_minutes) || 0) };
const id = execution.id === undefined || execution.id === null ? null : String(execution.id);
const url = cleaned(execution.url ?? '', 500);
return [{ json: { ...asked, workflow, node, said, id, url, asked: JSON.stringify(asked) } }];

function alike(text) {
  return text
    .replace(/[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}/gi, '#')
    .replace(/\b(?=[a-z]*\d)[0-9a-f]{8,}\b/gi, '#')
    .replace(/\d+(?:[.,:]\d+)*/g, '#');
}
