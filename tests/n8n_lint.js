// What only JavaScript can tell of the templates: does n8n's own parser take the expressions, do the Code nodes
// compile, and does every name in them exist? stdin {modules, templates: {label: template}}, stdout {label: [finding]}.
'use strict';
const { createRequire } = require('node:module');
const given = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
const installed = createRequire(`${given.modules}/`);
const { Tournament } = installed('@n8n/tournament');
const { parseScript } = installed('esprima-next');

const AsyncFunction = Object.getPrototypeOf(async () => {}).constructor;
const parser = new Tournament(() => {});
const LANGUAGE = new Set(`
  undefined NaN Infinity arguments Object Array String Number Boolean Symbol BigInt Math JSON Date RegExp Promise
  Map Set WeakMap WeakSet Error TypeError RangeError SyntaxError parseInt parseFloat isNaN isFinite
  encodeURIComponent decodeURIComponent encodeURI decodeURI ArrayBuffer DataView Uint8Array Uint16Array Uint32Array
  Int8Array Int16Array Int32Array Float32Array Float64Array
  Buffer setTimeout clearTimeout console DateTime Duration Interval
  $ $input $json $binary $execution $workflow $runIndex $itemIndex $now $today $vars $node $prevNode $if $max $min
  $getWorkflowStaticData $pageCount $nodeVersion $parameter
`.trim().split(/\s+/)); // no $env: 2.x refuses it; no process, URL, crypto, fetch: a Code node has none

// --- a walk over a syntax tree --------------------------------------------------------------------------

function* nodesOf(tree) {
  if (tree === null || typeof tree !== 'object') return;
  if (Array.isArray(tree)) {
    for (const part of tree) yield* nodesOf(part);
    return;
  }
  if (typeof tree.type === 'string') yield tree;
  for (const [name, part] of Object.entries(tree)) if (name !== 'loc' && name !== 'range') yield* nodesOf(part);
}

function* boundNames(pattern) {
  if (!pattern) return;
  if (pattern.type === 'Identifier') yield pattern.name;
  for (const part of pattern.elements ?? []) yield* boundNames(part);
  for (const part of pattern.properties ?? []) yield* boundNames(part.value ?? part.argument);
  if (pattern.type === 'AssignmentPattern') yield* boundNames(pattern.left);
  if (pattern.type === 'RestElement') yield* boundNames(pattern.argument);
}

function declared(tree) {
  const names = new Set();
  const add = (pattern) => { for (const name of boundNames(pattern)) names.add(name); };
  for (const node of nodesOf(tree)) {
    if (node.type === 'VariableDeclarator' || node.type === 'ClassDeclaration') add(node.id);
    if (/Function/.test(node.type)) [node.id, ...node.params].forEach(add);
    if (node.type === 'CatchClause') add(node.param);
  }
  return names;
}

// Names that are read or written, not those of properties.
function used(tree) {
  const labels = new Set();
  for (const node of nodesOf(tree)) {
    if (node.type === 'MemberExpression' && !node.computed) labels.add(node.property);
    if (/^(Property|MethodDefinition|PropertyDefinition)$/.test(node.type) && !node.computed && !node.shorthand) labels.add(node.key);
    if (/^(LabeledStatement|BreakStatement|ContinueStatement)$/.test(node.type)) labels.add(node.label);
  }
  const names = new Set();
  for (const node of nodesOf(tree)) if (node.type === 'Identifier' && !labels.has(node)) names.add(node.name);
  return names;
}

function* nodesNamed(tree) {
  for (const node of nodesOf(tree)) {
    const called = node.type === 'CallExpression' && node.callee.type === 'Identifier' && node.callee.name === '$';
    if (called && node.arguments[0]?.type === 'Literal') yield node.arguments[0].value;
  }
}

// --- one template ---------------------------------------------------------------------------------------

function* stringsOf(value, place) {
  if (typeof value === 'string') yield [place, value];
  else if (value && typeof value === 'object') {
    for (const [name, part] of Object.entries(value)) yield* stringsOf(part, place ? `${place}.${name}` : name);
  }
}

// Whatever may have run before a node, itself as well.
function above(sources, name) {
  const seen = new Set([name]);
  for (const target of seen) for (const source of sources.get(target) ?? []) seen.add(source);
  return seen;
}

function sourcesOf(template) {
  const sources = new Map();
  for (const [source, kinds] of Object.entries(template.connections)) {
    for (const wire of Object.values(kinds).flat(2)) {
      if (wire) sources.set(wire.node, [...(sources.get(wire.node) ?? []), source]);
    }
  }
  return sources;
}

function* namesFindings({ unknown, named }, { names, sources }, node) {
  for (const name of unknown) yield `uses ${name}, which nothing declares`;
  const before = named.length ? above(sources, node.name) : null;
  for (const name of named) {
    if (!names.has(name)) yield `$('${name}') does not exist`;
    else if (!before.has(name)) yield `$('${name}') never runs before it`;
  }
}

function namesOf(tree) {
  const own = declared(tree);
  return { unknown: [...used(tree)].filter((name) => !own.has(name) && !LANGUAGE.has(name)), named: [...nodesNamed(tree)] };
}

// Many templates have the same code, so what is read is kept. What does not compile throws.
const read = new Map();

function once(code, reading) {
  if (!read.has(code)) {
    try { read.set(code, { value: reading(code) }); } catch (error) { read.set(code, { error }); }
  }
  const { value, error } = read.get(code);
  if (error) throw error;
  return value;
}

function readCode(code) {
  new AsyncFunction(code);
  return namesOf(parseScript(`(async function () {${code}\n})`));
}

function* codeFindings(code, place, node) {
  let names;
  try {
    names = once(code, readCode);
  } catch (error) {
    yield `the code does not compile: ${error.message}`;
    return;
  }
  yield* namesFindings(names, place, node);
}

// The code between {{ and }}, as n8n cuts it: the first }} ends it, wherever it stands.
function* pieces(expression) {
  for (const [, code] of expression.matchAll(/\{\{(.*?)\}\}/gs)) yield code;
}

function readExpression(text) {
  parser.getExpressionCode(text.slice(1));
  const trees = [...pieces(text)].map((code) => parseScript(`(${code}\n)`));
  const chained = [...nodesOf(trees)].some((part) => part.type === 'TemplateLiteral' && part.expressions.some((one) => one.type === 'ChainExpression'));
  return { names: trees.map(namesOf), chained };
}

function* expressionFindings(name, text, place, node) {
  let found;
  try {
    found = once(text, readExpression);
  } catch (error) {
    yield `${name}: n8n cannot read ${text.slice(0, 120)}: ${error.message}`;
    return;
  }
  for (const names of found.names) for (const finding of namesFindings(names, place, node)) yield `${name}: ${finding}`;
  if (found.chained) yield `${name}: ?. is the last thing in a \${} of a template literal`;
}

function valuesGiven(node) {
  const text = node.parameters.options?.queryReplacement;
  if (text === undefined) return 0;
  const [code, ...more] = pieces(text);
  if (!/^=\{\{.*\}\}$/s.test(text) || code === undefined || more.length) return null;
  const list = parseScript(`(${code}\n)`).body[0].expression;
  return list.type === 'ArrayExpression' ? list.elements.length : null;
}

function* sqlFindings(node) {
  const { query } = node.parameters;
  if (node.type !== 'n8n-nodes-base.postgres' || typeof query !== 'string') return;
  const wanted = Math.max(0, ...[...query.matchAll(/\$(\d+)/g)].map((match) => Number(match[1])));
  const count = valuesGiven(node);
  if (count === null) yield 'queryReplacement is not one expression that gives a list';
  else if (count !== wanted) yield `the statement has ${wanted} parameters and is given ${count}`;
}

function* nodeFindings(place, node) {
  for (const [name, text] of stringsOf(node.parameters, '')) {
    if (name === 'jsCode') yield* codeFindings(text, place, node);
    else if (text.startsWith('=')) yield* expressionFindings(name, text, place, node);
    else if (text.includes('{{')) yield `${name}: {{ }} in a value that is no expression`;
  }
  try { yield* sqlFindings(node); } catch { /* the expression does not compile, and that was told */ }
}

const told = {};
for (const [label, template] of Object.entries(given.templates)) {
  const place = { names: new Set(template.nodes.map((node) => node.name)), sources: sourcesOf(template) };
  told[label] = template.nodes.flatMap((node) => [...nodeFindings(place, node)].map((finding) => `${node.name}: ${finding}`));
}
process.stdout.write(JSON.stringify(told));
