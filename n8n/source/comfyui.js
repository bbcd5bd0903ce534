// What Code nodes know of ComfyUI, the same as the Python package comfyflow does (src/comfyflow, named below).
//
// JSON is read by readJson, because JavaScript would round a seed of 64 bits, write 1.0 as 1, and sort the nodes
// of a graph by their number. What it gives is plain JSON with three marks, so that nodes can hand it on:
//   "\u0001#TOKEN"  a number that JavaScript would write in another way (also NaN, Infinity, -Infinity)
//   "\u0001'TEXT"   a text (or a key) that itself begins with \u0001
//   "\u0001order"   a key of an object whose keys JavaScript would put in another order: the list of them
// writeJson turns the marks into JSON again, plain() into ordinary values. Go through an object that was read
// with keysOf or entriesOf; reading single keys needs no care.

// Begins what readJson marks: numbers kept as they were written, the order of keys (comfyui.js).
const MARK = '\u0001';
const ORDER_KEY = '\u0001order';
const NOT_FINITE = { NaN: 'nan', Infinity: 'inf', '-Infinity': '-inf' }; // as Python calls them
const MAX_GRAPH_DEPTH = 100; // levels; real graphs have about five
const MAX_JSON_DEPTH = 1000; // levels; about where Python gives up
const MAX_DIGITS = 4300; // of an integer; Python refuses to read more
const MAX_TEXT_SIZE = 100 * 1024 * 1024; // ComfyUI refuses larger bodies
const HOW_TO_EXPORT =
  "in ComfyUI choose Workflow > Export (API), or enable the dev mode options and use 'Save (API format)'";

// --- reading JSON --------------------------------------------------------------------------------------------

// The value of a JSON text. Throws an Error whose message says in one sentence what is wrong, and where.
function readJson(text) {
  const source = String(text).replace(/^\uFEFF/, '');
  if (source.length > MAX_TEXT_SIZE) throw new Error('this is larger than 100 MiB, which is more than ComfyUI takes');
  const state = { source, place: 0 };
  const value = readValue(state, 0);
  skipSpace(state);
  if (state.place < source.length) throw badJson(state, 'Extra data');
  return value;
}

function badJson({ source, place }, message, at = place) {
  const before = source.slice(0, at).split('\n');
  const column = [...before[before.length - 1]].length + 1;
  return new Error(`this is not JSON: ${message} (line ${before.length}, column ${column})`);
}

function skipSpace(state) {
  const space = /[ \t\n\r]*/y;
  space.lastIndex = state.place;
  space.test(state.source);
  state.place = space.lastIndex;
}

function readValue(state, depth) {
  if (depth > MAX_JSON_DEPTH) throw new Error(tooDeep('the text'));
  skipSpace(state);
  const letter = state.source[state.place];
  if (letter === '{') return readObject(state, depth);
  if (letter === '[') return readList(state, depth);
  if (letter === '"') return shieldedText(readText(state));
  return readToken(state);
}

function tooDeep(place) {
  const parts = place.split(', '); // of which the first tell where to look
  const where = parts.length > 4 ? [...parts.slice(0, 4), '...'].join(', ') : place;
  return `${where} is nested more than ${MAX_GRAPH_DEPTH} levels deep, which no workflow is`;
}

function readToken(state) {
  const token = /true|false|null|NaN|-?Infinity|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?/y;
  token.lastIndex = state.place;
  const found = token.exec(state.source)?.[0];
  if (found === undefined) throw badJson(state, 'Expecting value');
  state.place += found.length;
  if (found === 'true') return true;
  if (found === 'false') return false;
  return found === 'null' ? null : numberFrom(found);
}

// A number of JSON: as JavaScript's own where that is written the same, else marked.
function numberFrom(token) {
  if (token.length > MAX_DIGITS && isWholeToken(token) && token.replace('-', '').length > MAX_DIGITS) {
    throw new Error(`this holds a number that cannot be read: it has more than ${MAX_DIGITS} digits`);
  }
  const number = Number(token);
  return Number.isFinite(number) && String(number) === token ? number : `${MARK}#${token}`;
}

function readText(state) {
  const { source, place } = state;
  let end = place;
  do {
    end = source.indexOf('"', end + 1);
    if (end < 0) throw badJson(state, 'Unterminated string starting at');
  } while (isEscaped(source, end));
  state.place = end + 1;
  try {
    return JSON.parse(source.slice(place, end + 1));
  } catch {
    throw badJson(state, 'Invalid control character or \\escape in the string starting at', place);
  }
}

function isEscaped(source, place) {
  let slashes = 0;
  while (source[place - 1 - slashes] === '\\') slashes += 1;
  return slashes % 2 === 1;
}

function readList(state, depth) {
  const list = [];
  state.place += 1;
  skipSpace(state);
  if (state.source[state.place] === ']') {
    state.place += 1;
    return list;
  }
  do list.push(readValue(state, depth + 1));
  while (isFollowed(state, ']'));
  return list;
}

// Whether a comma comes next, and not the end.
function isFollowed(state, end) {
  skipSpace(state);
  const letter = state.source[state.place];
  if (letter !== ',' && letter !== end) throw badJson(state, "Expecting ',' delimiter");
  state.place += 1;
  return letter === ',';
}

function readObject(state, depth) {
  const pairs = new Map(); // which keeps the order; of a key that comes twice the last value counts
  state.place += 1;
  skipSpace(state);
  if (state.source[state.place] === '}') {
    state.place += 1;
    return {};
  }
  do readPair(state, pairs, depth);
  while (isFollowed(state, '}'));
  return objectFrom(pairs);
}

function readPair(state, pairs, depth) {
  skipSpace(state);
  if (state.source[state.place] !== '"') throw badJson(state, 'Expecting property name enclosed in double quotes');
  const name = shieldedText(readText(state));
  skipSpace(state);
  if (state.source[state.place] !== ':') throw badJson(state, "Expecting ':' delimiter");
  state.place += 1;
  pairs.set(name, readValue(state, depth + 1));
}

// --- objects that keep their order, texts and numbers --------------------------------------------------------

// An object of [key, value] pairs, with the list of its keys where JavaScript would sort them otherwise.
function objectFrom(pairs) {
  const entries = [...pairs];
  // Not object[name] = value: the key "__proto__" would set something else; and n8n's runner takes
  // Object.defineProperty away from Code nodes.
  const object = Object.fromEntries(entries);
  const names = entries.map(([name]) => name);
  if (Object.keys(object).every((name, place) => name === names[place])) return object;
  return Object.fromEntries([...entries, [ORDER_KEY, names]]);
}

// The keys in the order of the text; keys that were added since come last.
function keysOf(object) {
  const names = Object.keys(object);
  if (!Array.isArray(object[ORDER_KEY])) return names;
  const known = new Set([...object[ORDER_KEY], ...names].filter((name) => hasKey(object, name)));
  known.delete(ORDER_KEY);
  return [...known];
}

function entriesOf(object) {
  return keysOf(object).map((name) => [name, object[name]]);
}

function hasKey(object, name) {
  return Object.prototype.hasOwnProperty.call(object, name);
}

// A part of an object, or undefined; never what all objects inherit, such as "constructor".
function partOf(object, name) {
  return isObject(object) && hasKey(object, name) ? object[name] : undefined;
}

function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isText(value) {
  return typeof value === 'string' && tokenOf(value) === null;
}

// The digits of a number, as they were written; null for everything else.
function tokenOf(value) {
  if (typeof value === 'number') return String(value);
  if (typeof value !== 'string' || !value.startsWith(`${MARK}#`)) return null;
  const token = value.slice(2);
  // Whoever made it, nothing but a number may get out of a mark.
  return hasKey(NOT_FINITE, token) || /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$/.test(token) ? token : null;
}

function isWholeToken(token) {
  return /^-?[0-9]+$/.test(token);
}

// Whether a value is a number, marked or not; NaN and the infinities are none.
function isNumber(value) {
  const token = tokenOf(value);
  return token !== null && !hasKey(NOT_FINITE, token);
}

// The number as JavaScript's own, which may be rounded; NaN for what is none.
function numberOf(value) {
  return isNumber(value) ? Number(tokenOf(value)) : NaN;
}

function isWhole(value) {
  const token = tokenOf(value);
  return token !== null && isWholeToken(token);
}

function shieldedText(text) {
  return text.startsWith(MARK) ? `${MARK}'${text}` : text;
}

// The text that was read.
function rawText(value) {
  return value.startsWith(`${MARK}'`) ? value.slice(2) : value;
}

// A copy without marks: numbers are JavaScript's, the order is its own. For messages and answers.
function plain(value) {
  if (typeof value === 'string') return isText(value) ? rawText(value) : finiteOrNull(numberOf(value));
  if (Array.isArray(value)) return value.map(plain);
  if (!isObject(value)) return value;
  const copy = objectFrom(entriesOf(value).map(([name, part]) => [rawText(name), plain(part)]));
  delete copy[ORDER_KEY];
  return copy;
}

function finiteOrNull(number) {
  return Number.isFinite(number) ? number : null;
}

// --- writing JSON --------------------------------------------------------------------------------------------

// JSON text, with numbers and order as they were read. NaN and the infinities become null.
function writeJson(value) {
  return jsonText(value, { text: JSON.stringify, number: (token) => token, keys: keysOf });
}

function jsonText(value, how) {
  const token = tokenOf(value);
  if (token !== null) return hasKey(NOT_FINITE, token) ? 'null' : how.number(token);
  if (typeof value === 'string') return how.text(rawText(value));
  if (Array.isArray(value)) return `[${value.map((part) => jsonText(part, how)).join(',')}]`;
  if (!isObject(value)) return JSON.stringify(value) ?? 'null';
  const names = how.keys(value).filter((name) => value[name] !== undefined);
  return `{${names.map((name) => `${how.text(rawText(name))}:${jsonText(value[name], how)}`).join(',')}}`;
}

// The text whose SHA-256 is the digest of a checked graph (workflow.py, Workflow.digest): what is computed,
// whatever the order of keys and the titles are.
function canonical(graph) {
  const bare = entriesOf(graph).map(([id, node]) => {
    return [id, objectFrom(entriesOf(node).filter(([name]) => name !== '_meta'))];
  });
  const sortedKeys = (object) => keysOf(object).sort((one, other) => compareCodePoints(rawText(one), rawText(other)));
  return jsonText(objectFrom(bare), { text: asciiText, number: pythonNumber, keys: sortedKeys });
}

// Python sorts by code point, JavaScript by halves of them: they differ beyond U+FFFF.
function compareCodePoints(one, other) {
  const [left, right] = [[...one], [...other]];
  const place = left.findIndex((letter, index) => letter !== right[index]);
  if (place < 0) return left.length - right.length;
  return place < right.length ? left[place].codePointAt(0) - right[place].codePointAt(0) : 1;
}

function asciiText(text) {
  const escaped = (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`;
  return JSON.stringify(text).replace(/[\u007f-\uffff]/g, escaped);
}

// A number as Python writes it: integers as they are, others as repr(float).
function pythonNumber(token) {
  if (isWholeToken(token)) return token === '-0' ? '0' : token;
  const number = Number(token);
  if (number === 0) return token.startsWith('-') ? '-0.0' : '0.0';
  const [, sign, digits, power] = /^(-?)([0-9.]+)e([-+][0-9]+)$/.exec(number.toExponential());
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16) {
    return `${sign}${digits}e${exponent < 0 ? '-' : '+'}${String(Math.abs(exponent)).padStart(2, '0')}`;
  }
  return sign + fixedDigits(digits.replace('.', ''), exponent);
}

function fixedDigits(digits, exponent) {
  if (exponent < 0) return `0.${'0'.repeat(-exponent - 1)}${digits}`;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, '0');
  return `${whole}.${digits.slice(exponent + 1) || '0'}`;
}

// --- checking a graph (workflow.py) --------------------------------------------------------------------------

// {graph}: a checked copy of a graph in API format, taken out of {"prompt": graph} where it is in one; or
// {problem}: what is wrong with it, in one sentence.
function checkedGraph(value) {
  try {
    return { graph: graphFrom(value) };
  } catch (error) {
    if (!error.isProblem) throw error;
    return { problem: error.message };
  }
}

function badGraph(message) {
  return Object.assign(new Error(message), { isProblem: true });
}

function graphFrom(data) {
  if (!isObject(data)) {
    throw badGraph(`this holds ${kindOf(data)}, but a workflow is a JSON object of nodes: ${HOW_TO_EXPORT}`);
  }
  const inner = partOf(data, 'prompt');
  const graph = isObject(inner) && !hasKey(inner, 'class_type') ? inner : data;
  const saved = partOf(graph, 'nodes');
  if (Array.isArray(saved) && !saved.length) throw badGraph('this is an empty workflow: it has no nodes');
  if (Array.isArray(saved)) {
    throw badGraph(`this is in UI format, which cannot be queued: ${HOW_TO_EXPORT}`);
  }
  if (!keysOf(graph).length) throw badGraph('this is an empty workflow: it has no nodes');
  const nodes = objectFrom(entriesOf(graph).map(([id, node]) => [id, checkedNode(id, node)]));
  for (const [id, node] of entriesOf(nodes)) {
    for (const name of keysOf(node.inputs)) checkLink(nodes, id, name);
  }
  return nodes;
}

function checkedNode(id, node) {
  const name = rawText(id);
  if (!isObject(node)) {
    throw badGraph(`node '${name}' is ${kindOf(node)}, not an object with a class_type: ${HOW_TO_EXPORT}`);
  }
  const kind = partOf(node, 'class_type');
  if (!isText(kind) || !kind) {
    throw badGraph(`node '${name}' has no class_type, which says what it does: ${HOW_TO_EXPORT}`);
  }
  if (!isObject(partOf(node, 'inputs'))) {
    throw badGraph(`node ${labelOf(id, node)} has no inputs object; a node without inputs needs an empty one`);
  }
  // ComfyUI writes `is_changed: NaN` beside the inputs (0.3.64); no server reads it back.
  const kept = entriesOf(node).filter(([key, part]) => key === 'inputs' || isFiniteDeep(part));
  return objectFrom(
    kept.map(([key, part]) => [key, copiedPart(part, `${rawText(key)} of node ${labelOf(id, node)}`, 0)]),
  );
}

function checkLink(graph, id, name) {
  const value = graph[id].inputs[name];
  if (!Array.isArray(value) || value.length !== 2 || !isText(value[0])) return;
  const [source, slot] = value;
  const place = `input '${rawText(name)}' of node ${labelOf(id, graph[id])}`;
  const there = hasKey(graph, source);
  if (!there && isLink(value)) {
    throw badGraph(`${place} is linked to node '${rawText(source)}', which the workflow does not have`);
  }
  if (there && (!isWhole(slot) || numberOf(slot) < 0)) {
    const shown = isNumber(slot) ? tokenOf(slot) : writeJson(slot);
    const other = labelOf(source, graph[source]);
    throw badGraph(`${place} is linked to slot ${shown} of node ${other}: slots are 0, 1, 2, ...`);
  }
}

// Whether an input is a connection: ["node id", slot].
function isLink(value) {
  return Array.isArray(value) && value.length === 2 && isText(value[0]) && isWhole(value[1]);
}

function copiedPart(value, place, depth) {
  if (depth > MAX_GRAPH_DEPTH) throw badGraph(tooDeep(place));
  if (isEndless(value)) throw badGraph(`${place} is ${endlessName(value)}, which is no JSON number: give it a value`);
  if (Array.isArray(value)) return value.map((part) => copiedPart(part, place, depth + 1));
  if (!isObject(value)) return value;
  return objectFrom(
    entriesOf(value).map(([name, part]) => [name, copiedPart(part, `${place}, ${rawText(name)}`, depth + 1)]),
  );
}

// NaN, an infinity, or a fraction that is too large for a double, which Python reads as one.
function isEndless(value) {
  const token = tokenOf(value);
  return token !== null && !isWholeToken(token) && !Number.isFinite(Number(token));
}

function endlessName(value) {
  return NOT_FINITE[String(Number(tokenOf(value)))];
}

// What is too deep is left to the copy, which says so.
function isFiniteDeep(value) {
  let level = [value];
  for (let depth = 0; depth < MAX_GRAPH_DEPTH && level.length; depth++) {
    if (level.some(isEndless)) return false;
    level = level.flatMap(partsOf);
  }
  return true;
}

function partsOf(value) {
  if (Array.isArray(value)) return value;
  return isObject(value) ? entriesOf(value).map(([, part]) => part) : [];
}

function kindOf(value) {
  if (value === null || value === undefined) return 'null';
  if (typeof value === 'boolean') return 'true or false';
  if (tokenOf(value) !== null) return 'a number';
  if (typeof value === 'string') return 'a text';
  return Array.isArray(value) ? 'a list' : 'an object';
}

function ownTitle(node) {
  const title = partOf(partOf(node, '_meta'), 'title');
  return isText(title) && stripped(title) ? rawText(title) : null;
}

function titleOfNode(node) {
  return ownTitle(node) ?? rawText(String(node.class_type));
}

function labelOf(id, node) {
  return `"${titleOfNode(node)}" (${rawText(id)})`;
}

// What a person calls a node: its title, else its class, else (not in this graph) the id itself. A node that
// came up while the job ran ("5.0.1") is named after the one it came from ("5").
function titleOf(graph, nodeId) {
  const id = String(nodeId);
  const node = partOf(graph, id) ?? partOf(graph, id.split('.')[0]);
  return node ? titleOfNode(node) : rawText(id);
}

// Without what Python's str.strip() takes for space; JavaScript's trim() differs a little.
function stripped(text) {
  const space = '[\\t-\\r\\x1c- \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]';
  return text.replace(new RegExp(`^${space}+`), '').replace(new RegExp(`${space}+$`), '');
}

// --- the prompt (workflow.py, Workflow.prompt_text) -----------------------------------------------------------

// As with Python's fullmatch, whose "." is all but a line feed and whose "\d" is a digit of any script.
const TEXT_INPUT = new RegExp(
  '^(?:(positive_?)?(text|prompt|string|value|caption)s?(_?([a-z]|\\p{Nd}+|positive))?' +
    '|([^\\n]*\\.|text_)?prompt|positive|populated_text|tags|lyrics|clip_[lg]|t5xxl|mt5xl|bert|llama)$',
  'u',
);
const PROMPT_INPUT = /^([^\n]*\.|text_|positive_)?prompt$/;
const CONDITIONING_INPUT = /^(?:positive[^\n]*|cond(itioning)?(_[^\n]*|\p{Nd}+)?)$/u;

// The positive prompt of a checked graph, one text a line, or null: what flows into the samplers.
function promptText(graph) {
  const seen = new Set();
  const texts = positiveStarts(graph).flatMap((start) => textsUpstream(graph, start, seen));
  const lines = texts.map((text) => stripped(rawText(text))).filter((text) => text);
  return [...new Set(lines)].join('\n') || null;
}

// In front of every `positive` input, else of the guiders (Flux), else the nodes with a `prompt`.
function positiveStarts(graph) {
  const links = entriesOf(graph).flatMap(([, node]) =>
    linksHere(node.inputs).map(([name, source]) => ({ kind: rawText(node.class_type), name: rawText(name), source })),
  );
  const ways = [
    links.filter(({ name }) => name === 'positive'),
    links.filter(({ kind, name }) => kind.includes('Guider') && CONDITIONING_INPUT.test(name)),
  ];
  const found = ways.find((way) => way.length);
  if (found) return found.map(({ source }) => source);
  return keysOf(graph).filter((id) => keysOf(graph[id].inputs).some((name) => PROMPT_INPUT.test(rawText(name))));
}

function linksHere(inputs) {
  return entriesOf(inputs)
    .filter(([, value]) => isLink(value))
    .map(([name, value]) => [name, value[0]]);
}

// Against the links, depth first.
function textsUpstream(graph, start, seen) {
  const texts = [];
  const waiting = [start];
  while (waiting.length) {
    const id = waiting.pop();
    if (seen.has(id)) continue;
    seen.add(id);
    const [found, further] = textsHere(graph[id].inputs);
    texts.push(...found);
    waiting.push(...further.reverse());
  }
  return texts;
}

// The texts that a node holds, and the nodes in front of it that may hold more of the positive prompt.
function textsHere(inputs) {
  const isNamed = (name) => TEXT_INPUT.test(rawText(name));
  const texts = entriesOf(inputs).filter(([name, value]) => isNamed(name) && isText(value)).map(([, value]) => value);
  const links = linksHere(inputs).filter(([name]) => !name.includes('neg'));
  const likely = links.filter(([name]) => isNamed(name) || CONDITIONING_INPUT.test(rawText(name)));
  const onward = likely.length || texts.length ? likely : links;
  return [texts, onward.map(([, source]) => source)];
}

// --- what made a file (traits.py) -----------------------------------------------------------------------------

const MODEL_FILE = /^[^]+\.(safetensors|ckpt|sft|gguf|pth?|bin)$/iu;
const MODEL_NAME = /^(ckpt|checkpoint|unet|diffusion_model|dit|model)(_?name|_?path|_?file)?$/;
const MODEL_LINK = /^(?:model(_?\p{Nd}+)?|(base|refiner|diffusion|high_noise|low_noise)_model|unet)$/u;
const LORA_INPUT = /^lora[^\n]*$/;
// What hangs on a sampler beside its own model: what comes over these links did not paint the picture.
const OTHER_MODEL = /^[^\n]*(vae|clip|upscale|control|style|encoder|interp|patch|detector|segm|sam_)[^\n]*$/;
const SAMPLING_INPUT = /^(positive|conditioning|cond|steps|cfg|seed|noise_seed)$/;
const SWITCH_INPUT = /^(switch|boolean|condition)$/;
const SEED_INPUTS = ['seed', 'noise_seed'];
const NUMBER_INPUTS = [...SEED_INPUTS, 'value', 'int', 'number']; // what primitive nodes call their one input

// {seed, model, loras} of the output of a node in a checked graph: a number (marked where it is large) or null,
// a text or null, a list. Nodes that came up while the job ran ("5.0.1") belong to "5".
function traits(graph, nodeId) {
  const id = String(nodeId);
  const start = hasKey(graph, id) ? id : id.split('.')[0];
  if (!hasKey(graph, start)) return { seed: null, model: null, loras: [] };
  const way = walkedInputs(graph, [start], sourcesOf);
  const model = paintingModel(graph, start, way);
  return { seed: nearestSeed(graph, way), model: model === null ? null : rawText(model), loras: loraNames(way) };
}

// The inputs of every node from `starts` against the links, nearest first, each once: a circle has an end too.
function walkedInputs(graph, starts, onward) {
  const order = new Set(starts); // a Set gives what is added while it is gone through, too
  const way = [];
  for (const id of order) {
    way.push(graph[id].inputs);
    for (const source of onward(graph, graph[id].inputs)) order.add(source);
  }
  return way;
}

// Names of linked inputs and where they come from; of a switch that is known only the side in use.
function usedLinks(graph, inputs) {
  const unused = unusedSide(graph, inputs);
  return linksHere(inputs).filter(([name]) => name !== unused);
}

function sourcesOf(graph, inputs) {
  return usedLinks(graph, inputs).map(([, source]) => source);
}

// The side of a switch that is not taken (ComfySwitchNode, 0.27.0), null where that is open.
function unusedSide(graph, inputs) {
  if (!hasKey(inputs, 'on_true') || !hasKey(inputs, 'on_false')) return null;
  const choice = inputs[keysOf(inputs).find((name) => SWITCH_INPUT.test(name))];
  const value = isLink(choice) ? partOf(graph[choice[0]].inputs, 'value') : choice;
  if (typeof value !== 'boolean') return null;
  return value ? 'on_false' : 'on_true';
}

function firstFound(list, look) {
  for (const item of list) {
    const found = look(item);
    if (found !== null) return found;
  }
  return null;
}

// Later stages take over the noise of an earlier one; their seed says little.
function nearestSeed(graph, way) {
  const look = (inputs) => seedHere(graph, inputs);
  return firstFound(way.filter((inputs) => !isQuiet(inputs)), look) ?? firstFound(way.filter(isQuiet), look);
}

// KSamplerAdvanced and SamplerCustom say so in different ways; 0 is False for Python.
function isQuiet(inputs) {
  const noise = partOf(inputs, 'add_noise');
  return noise === 'disable' || noise === false || numberOf(noise) === 0;
}

function seedHere(graph, inputs) {
  return firstFound(SEED_INPUTS, (name) => {
    const value = partOf(inputs, name);
    return isLink(value) ? seedWritten(graph, value[0]) : wholeOrNull(value);
  });
}

function seedWritten(graph, start) {
  const look = (inputs) => firstFound(NUMBER_INPUTS, (name) => wholeOrNull(partOf(inputs, name)));
  return firstFound(walkedInputs(graph, [start], sourcesOf), look);
}

// 5.0 is the number 5.
function wholeOrNull(value) {
  if (!isNumber(value)) return null;
  if (isWhole(value)) return tokenOf(value) === '-0' ? 0 : value;
  const number = numberOf(value);
  return Number.isInteger(number) ? numberFrom(BigInt(number).toString()) : null;
}

// Along the nearest sampler's link, else along any link to a model, else the first that is named.
function paintingModel(graph, start, way) {
  const linked = way
    .map((inputs) => ({ inputs, sources: modelSources(graph, inputs) }))
    .filter(({ sources }) => sources.length)
    .sort((one, other) => modelDistance(one.inputs) - modelDistance(other.inputs));
  const found = firstFound(linked, ({ sources }) => firstModel(graph, sources, modelWay));
  return found ?? firstModel(graph, [start], paintingSources);
}

// Samplers before other nodes with a model (detectors, ...), and the one that adds the noise before those that
// go on with its work (SDXL's refiner).
function modelDistance(inputs) {
  const samples = keysOf(inputs).some((name) => SAMPLING_INPUT.test(name));
  return (samples ? 0 : 2) + (isQuiet(inputs) ? 1 : 0);
}

function firstModel(graph, starts, onward) {
  return firstFound(walkedInputs(graph, starts, onward), modelHere);
}

function modelHere(inputs) {
  const found = entriesOf(inputs).find(([name, value]) => MODEL_NAME.test(name) && isModelFile(value));
  return found ? found[1] : null;
}

function modelSources(graph, inputs) {
  return usedLinks(graph, inputs).filter(([name]) => MODEL_LINK.test(name)).map(([, source]) => source);
}

function modelWay(graph, inputs) {
  const sources = modelSources(graph, inputs);
  return sources.length ? sources : paintingSources(graph, inputs);
}

function paintingSources(graph, inputs) {
  return usedLinks(graph, inputs).filter(([name]) => !OTHER_MODEL.test(name)).map(([, source]) => source);
}

function loraNames(way) {
  const inputs = way.flatMap(entriesOf).filter(([name]) => LORA_INPUT.test(name));
  return [...new Set(inputs.map(([, value]) => loraName(value)).filter((name) => name !== null))].map(rawText);
}

function loraName(value) {
  if (isModelFile(value)) return value;
  const name = partOf(value, 'on') === true ? partOf(value, 'lora') : null; // Power Lora Loader of rgthree-comfy
  return isModelFile(name) ? name : null;
}

function isModelFile(value) {
  return isText(value) && MODEL_FILE.test(rawText(value));
}

// --- ids (submit.py, runner.py, rows.py, store.py) --------------------------------------------------------------

// The prompt id that belongs to an idempotency key: always the same.
function keyId(key) {
  if (!key) throw new Error('an idempotency key must not be empty: all jobs would be the same one');
  return uuid5(`comfyflow:key:${key}`);
}

// The id of the job that replaces one that is lost.
function againId(promptId) {
  return uuid5(`comfyflow:again:${promptId}`);
}

// The `event_id` of a job's outcome: always the same, so that there is one line, whoever writes it.
function outcomeId(promptId) {
  return uuid5(`comfyflow:outcome:${promptId}`);
}

// The `event_id` column for an id of any shape.
function eventId(text) {
  const digits = text.replace(/urn:|uuid:/g, '').replace(/^[{}]+|[{}]+$/g, '').replace(/-/g, '');
  return /^[0-9a-f]{32}$/i.test(digits) ? dashed(digits.toLowerCase()) : uuid5(storableText(`comfyflow:event:${text}`));
}

function storableText(text) {
  return wholeLetters(text, '\uFFFD').replace(/\0/g, '\uFFFD');
}

function wholeLetters(text, substitute) {
  return text.replace(/[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g, substitute);
}

function randomId() {
  const digit = () => Math.floor(Math.random() * 16).toString(16);
  const digits = Array.from({ length: 32 }, digit);
  digits.splice(21, 11, ...Date.now().toString(16).padStart(11, '0')); // lest a poor generator repeats itself
  digits[12] = '4';
  digits[16] = '89ab'[Math.floor(Math.random() * 4)];
  return dashed(digits.join(''));
}

function dashed(digits) {
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

// RFC 9562, version 5, of a name in the URL namespace.
function uuid5(name) {
  const namespace = '6ba7b8119dad11d180b400c04fd430c8'.match(/../g).map((pair) => parseInt(pair, 16));
  const hash = sha1([...namespace, ...utf8(name)]).slice(0, 16);
  hash[6] = (hash[6] & 0x0f) | 0x50;
  hash[8] = (hash[8] & 0x3f) | 0x80;
  return dashed(hash.map((byte) => byte.toString(16).padStart(2, '0')).join(''));
}

function utf8(text) {
  const escaped = encodeURIComponent(wholeLetters(text, '\uFFFD'));
  const byteOf = (part) => (part.length > 1 ? parseInt(part.slice(1), 16) : part.charCodeAt(0));
  return (escaped.match(/%..|[^]/g) ?? []).map(byteOf);
}

// The 20 bytes of SHA-1 (FIPS 180-4): Code nodes have no crypto.
function sha1(bytes) {
  const length = Math.ceil((bytes.length + 9) / 64) * 64;
  const data = new DataView(new ArrayBuffer(length));
  [...bytes, 0x80].forEach((byte, place) => data.setUint8(place, byte));
  data.setUint32(length - 4, bytes.length * 8);
  let state = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0];
  for (let block = 0; block < length; block += 64) state = sha1Block(state, data, block);
  return state.flatMap((word) => [word >>> 24, (word >>> 16) & 255, (word >>> 8) & 255, word & 255]);
}

function sha1Block(state, data, block) {
  const words = Array.from({ length: 16 }, (_, place) => data.getUint32(block + 4 * place));
  for (let i = 16; i < 80; i++) words.push(leftTurn(words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16], 1));
  let [a, b, c, d, e] = state;
  words.forEach((word, i) => {
    const [mixed, constant] = sha1Round(i, b, c, d);
    [a, b, c, d, e] = [(leftTurn(a, 5) + mixed + e + constant + word) | 0, a, leftTurn(b, 30), c, d];
  });
  return [a, b, c, d, e].map((word, place) => (word + state[place]) | 0);
}

function sha1Round(i, b, c, d) {
  if (i < 20) return [(b & c) | (~b & d), 0x5a827999];
  if (i < 40) return [b ^ c ^ d, 0x6ed9eba1];
  if (i < 60) return [(b & c) | (b & d) | (c & d), 0x8f1bbcdc];
  return [b ^ c ^ d, 0xca62c1d6];
}

function leftTurn(word, bits) {
  return (word << bits) | (word >>> (32 - bits));
}

// --- how a job ended (protocol.py) ------------------------------------------------------------------------------

const END_MESSAGES = ['execution_interrupted', 'execution_error', 'execution_success'];
const MAX_STAMP = 1e16; // ms
const MAX_OUTPUT_DEPTH = 8; // of nested values inside a node's output; real ones have two levels
const MAX_FOUND = 100000; // files and texts of one job
const MODEL_KEYS = ['result', 'model_file']; // Preview3D, now and in its first versions: a bare path
const MODEL_SUFFIXES = ['glb', 'gltf', 'obj', 'fbx', 'stl', 'ply', 'splat', 'spz', 'ksplat', 'usdz'];

// From an entry of GET /history/{id}. started_at and ended_at are seconds by the server's clock, or null. Throws an
// Error for what no ComfyUI writes: it must not pass for an end.
function entryOutcome(entry) {
  if (!isObject(entry)) throw new Error(`this holds ${kindOf(entry)} where ComfyUI's history tells of a job`);
  const status = heard(partOf(entry, 'status'));
  const messages = new Map(listOr(partOf(status, 'messages')).filter(isMessage));
  const told = messages.get('execution_cached');
  const cached = new Set(listOr(partOf(told, 'nodes')).map(pythonText));
  const found = foundOutputs(heard(partOf(entry, 'outputs')), told === undefined ? null : cached);
  const end = END_MESSAGES.find((name) => messages.has(name));
  return {
    ...verdictOf(partOf(status, 'status_str'), messages),
    ...found,
    reused_nodes: [...cached].sort(compareCodePoints),
    started_at: momentOf(messages.get('execution_start')),
    ended_at: momentOf(messages.get(end)),
  };
}

// Other programs take neither NaN nor half a letter, which ComfyUI's JSON may hold.
function heard(value) {
  const token = tokenOf(value);
  if (token !== null) return hasKey(NOT_FINITE, token) ? null : value;
  if (typeof value === 'string') return wholeLetters(value, '?');
  if (Array.isArray(value)) return value.map(heard);
  if (!isObject(value)) return value;
  return objectFrom(entriesOf(value).map(([name, part]) => [wholeLetters(name, '?'), heard(part)]));
}

function listOr(value) {
  return Array.isArray(value) ? value : [];
}

function isMessage(item) {
  return Array.isArray(item) && item.length === 2 && isText(item[0]) && isObject(item[1]);
}

// The messages decide: an interrupted job says `status_str` "error" too, and a late cycle says "success".
function verdictOf(status, messages) {
  for (const [name, state] of [['execution_interrupted', 'cancelled'], ['execution_error', 'failed']]) {
    const data = messages.get(name);
    if (data && partOf(data, 'exception_type') !== 'ExecutionBlocked') return { state, failure: failureFrom(data) };
  }
  if (status !== 'error') return { state: 'succeeded', failure: null };
  const message = 'the server recorded an error without saying which';
  const nothing = { node_id: null, node_type: null, exception_type: null, traceback: [] };
  return { state: 'failed', failure: { message, ...nothing } };
}

function failureFrom(data) {
  const textAt = (name) => (isText(partOf(data, name)) ? rawText(data[name]) : null);
  const node = partOf(data, 'node_id');
  const named = isText(node) || isWhole(node) || typeof node === 'boolean';
  return {
    message: stripped(textAt('exception_message') ?? 'interrupted'),
    node_id: named ? pythonText(node) : null,
    node_type: textAt('node_type'),
    exception_type: textAt('exception_type'),
    traceback: listOr(partOf(data, 'traceback')).map(pythonText),
  };
}

// As str() writes it; lists and objects, which no server sends here, stay JSON.
function pythonText(value) {
  if (isText(value)) return rawText(value);
  if (tokenOf(value) !== null) return pythonNumber(tokenOf(value));
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  return value === null ? 'None' : writeJson(value);
}

function momentOf(data) {
  const stamp = partOf(data, 'timestamp');
  const number = typeof stamp === 'boolean' ? Number(stamp) : numberOf(stamp);
  return Math.abs(number) < MAX_STAMP ? number / 1000 : null;
}

// Every file and text of {node id: {key: values}}, whatever the keys are called. A file is an object with a
// `filename`; Preview3D names its model as a bare text in `result`; a list of texts alone is text. The same file
// listed twice is one file. `cached` are the nodes answered from ComfyUI's cache, null where that was not told.
function foundOutputs(outputs, cached) {
  const files = new Map();
  const texts = [];
  for (const [id, key, value] of outputValues(outputs)) {
    const reused = isReused(id, cached);
    for (const file of filesIn(key, value, 0)) {
      const name = JSON.stringify([file.type, file.subfolder, file.filename]);
      if (!files.has(name)) files.set(name, { node_id: id, ...file, key, reused });
    }
    for (const text of textsIn(key, value)) texts.push({ node_id: id, key, text, reused });
  }
  return { outputs: [...files.values()].slice(0, MAX_FOUND), texts: texts.slice(0, MAX_FOUND) };
}

// The cached nodes are those of the sent graph; of what came up at run time ("5.0.1") they tell nothing: null.
function isReused(id, cached) {
  if (cached === null) return null;
  if (cached.has(id) || cached.has(id.split('.')[0])) return true;
  return id.includes('.') ? null : false;
}

function outputValues(outputs) {
  const nodes = isObject(outputs) ? entriesOf(outputs).filter(([, shown]) => isObject(shown)) : [];
  return nodes.flatMap(([id, shown]) => entriesOf(shown).map(([key, value]) => [rawText(id), rawText(key), value]));
}

function filesIn(key, value, depth) {
  if (isText(partOf(value, 'filename'))) return [fileFrom(value)];
  if (Array.isArray(value) || isObject(value)) {
    return depth < MAX_OUTPUT_DEPTH ? partsOf(value).flatMap((part) => filesIn(key, part, depth + 1)) : [];
  }
  return MODEL_KEYS.includes(key) && depth === 1 && isText(value) ? modelIn(value) : [];
}

function fileFrom(value) {
  const textAt = (name) => (isText(partOf(value, name)) ? rawText(value[name]) : '');
  return { filename: textAt('filename'), subfolder: textAt('subfolder'), type: textAt('type') || 'output' };
}

// Preview3D: `result: [model, camera, background]`, a path in the output folder.
function modelIn(value) {
  const [, path, folder] = /^([^]*?)(?: \[([^]*))?$/.exec(rawText(value).replace(/\]$/, ''));
  const [, subfolder, filename] = /^(?:([^]*)\/)?([^/]*)$/.exec(path.replace(/\\/g, '/'));
  const isModel = filename && MODEL_SUFFIXES.includes(filename.split('.').pop().toLowerCase());
  return isModel ? [{ filename, subfolder: subfolder ?? '', type: folder || 'output' }] : [];
}

function textsIn(key, value) {
  const found = isText(value) ? [value] : listOr(value);
  if (!found.every(isText)) return [];
  const isModel = (text) => MODEL_KEYS.includes(key) && modelIn(text).length > 0;
  return found.filter((text) => !isModel(text)).map(rawText);
}

// --- names of files ---------------------------------------------------------------------------------------------

// As src/comfyflow/media/sniffing.py names them.
const MEDIA_TYPES = {
  'image/png': 'png apng', 'image/jpeg': 'jpg jpeg', 'image/webp': 'webp', 'image/gif': 'gif', 'image/bmp': 'bmp',
  'image/tiff': 'tif tiff', 'image/x-exr': 'exr', 'image/vnd.radiance': 'hdr', 'image/avif': 'avif',
  'image/heic': 'heic', 'image/jxl': 'jxl', 'image/svg+xml': 'svg', 'video/mp4': 'mp4 m4v', 'video/webm': 'webm',
  'video/x-matroska': 'mkv', 'video/quicktime': 'mov', 'video/x-msvideo': 'avi', 'audio/flac': 'flac',
  'audio/mpeg': 'mp3', 'audio/ogg': 'ogg oga opus', 'audio/wav': 'wav', 'audio/mp4': 'm4a', 'audio/aac': 'aac',
  'audio/x-matroska': 'mka', 'model/gltf-binary': 'glb', 'model/gltf+json': 'gltf', 'model/obj': 'obj',
  'model/stl': 'stl', 'model/ply': 'ply', 'model/fbx': 'fbx', 'model/vnd.usdz+zip': 'usdz',
  'application/x-safetensors': 'safetensors latent', 'application/json': 'json', 'application/zip': 'zip',
  'application/pdf': 'pdf', 'text/plain': 'txt', 'text/csv': 'csv', 'text/html': 'html htm',
};

// By the suffix; null for one that is not known.
function mediaType(filename) {
  const suffix = /\.([^./\\]+)$/.exec(filename)?.[1].toLowerCase();
  const found = Object.entries(MEDIA_TYPES).find(([, suffixes]) => suffixes.split(' ').includes(suffix));
  return found ? found[0] : null;
}

// A base name of letters, digits, "." "_" and "-" for any system, whatever a server calls its file: no folder, no
// dot in front, no device of Windows, at most `limit` letters with the suffix kept.
function safeName(filename, limit = 120) {
  const base = filename.split(/[/\\]/).pop().normalize('NFKD').replace(/\p{M}/gu, '');
  const name = base.replace(/[^A-Za-z0-9._-]/gu, '_').replace(/^\.+|\.+$/g, '');
  if (!name) return 'output';
  const suffix = /[^](\.[A-Za-z0-9_-]{1,19})$/.exec(name)?.[1] ?? '';
  const free = /^(con|prn|aux|nul|conin|conout|clock|com[0-9]|lpt[0-9])_?(\.|$)/i.test(name) ? `_${name}` : name;
  if (free.length <= limit) return free;
  const stem = free.slice(0, free.length - suffix.length).slice(0, Math.max(1, limit - suffix.length));
  return (stem.replace(/\.+$/, '') + suffix).slice(0, limit);
}
