// One item for each file that is to be fetched; a single {none: true} when there is none. `rows` are what
// generated_assets will say of it.
const job = $('Evaluate').first().json;
const config = $('Config').first().json;
const taken = new Set();

function nameOf(file) {
  const base = safeName(`${job.prompt_id}_${file.node_id}_${file.filename}`, 180);
  let name = base;
  for (let number = 2; taken.has(name); number++) name = base.replace(/(\.[^.]*)?$/, `_${number}$1`);
  taken.add(name);
  return name;
}

const wanted = job.outcome.outputs.filter(
  (file) => file.type === 'output' || (config.include_temp === true && file.type === 'temp'),
);
if (!wanted.length) return [{ json: { none: true } }];
return wanted.map((file) => {
  const name = nameOf(file);
  return { json: { ...file, output_path: name, path: `${job.folder ?? config.shared_folder}/${name}` } };
});
