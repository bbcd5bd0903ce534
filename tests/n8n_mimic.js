// Plays a template as n8n would: from its trigger along its wires, with its expressions and its Code nodes, while
// what is outside (requests, SQL, files, mail) answers as the test says, and time passes only in Wait nodes.
// stdin {modules, templates, cases}, stdout [{answers, failed, waits, calls, outputs, steps, statics, broken}].
'use strict';
const vm = require('node:vm');
const { createRequire } = require('node:module');
const given = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
const { Tournament } = createRequire(`${given.modules}/`)('@n8n/tournament');

const MOST_STEPS = 3000;
const START = Date.parse('2026-11-23T12:00:00Z');
const copy = (value) => (value === undefined ? undefined : JSON.parse(JSON.stringify(value)));
const kindOf = (node) => node.type.replace('n8n-nodes-base.', '');
const thrown = (error) => { throw error; };
const expressions = new Tournament(thrown);
const scripts = new Map(); // by code: many cases run the same

class Play {
  constructor(template, asked) {
    this.nodes = new Map(template.nodes.map((node) => [node.name, node]));
    this.wires = template.connections;
    this.asked = asked;
    this.clock = START;
    this.runs = new Map(); // name -> items of each run
    this.told = { answers: [], failed: null, waits: [], calls: {}, outputs: {}, steps: [], statics: copy(asked.statics ?? {}), broken: null };
  }

  async play() {
    const todo = [{ name: this.asked.start, input: [this.asked.item] }];
    for (let step = 0; todo.length; step++) {
      if (step >= MOST_STEPS) throw new Error(`it goes round and round: ${this.told.steps.slice(-9).join(', ')}`);
      const { name, input } = todo.shift();
      const outputs = await this.run(this.nodes.get(name), input);
      if (this.told.failed !== null) break; // Stop And Error ends the execution
      todo.unshift(...this.next(name, outputs));
    }
    this.told.outputs = Object.fromEntries(this.runs);
    return this.told;
  }

  // The wires of one output are followed from the top of the canvas to its bottom, each to its end.
  next(name, outputs) {
    const found = [];
    (this.wires[name]?.main ?? []).forEach((wires, index) => {
      const items = outputs[index] ?? [];
      if (items.length) for (const wire of wires ?? []) found.push({ name: wire.node, input: items });
    });
    const place = ({ name: target }) => this.nodes.get(target).position;
    return found.sort((one, other) => place(one)[1] - place(other)[1] || place(one)[0] - place(other)[0]);
  }

  async run(node, given) {
    this.told.steps.push(node.name);
    const input = node.executeOnce ? given.slice(0, 1) : given;
    let outputs = await this.outputsOf(node, copy(input));
    if (node.alwaysOutputData && !outputs.flat().length) outputs = [[{ json: {} }]];
    this.runs.set(node.name, [...(this.runs.get(node.name) ?? []), outputs.flat()]);
    return outputs;
  }

  async outputsOf(node, input) {
    switch (kindOf(node)) {
      case 'webhook': case 'scheduleTrigger': case 'errorTrigger': case 'noOp': return [input];
      case 'set': return [input.map((item) => this.set(node, item))];
      case 'code': return [await this.code(node, input)];
      case 'if': return this.sort(input, 2, (item) => (this.holds(node, node.parameters.conditions, item) ? 0 : 1));
      case 'switch': return this.switch(node, input);
      case 'wait': return this.wait(node, input);
      case 'respondToWebhook': return this.respond(node, input);
      case 'stopAndError':
        this.told.failed = this.value(node, node.parameters.errorMessage, input[0]);
        return [];
      default: return [this.outside(node, input)];
    }
  }

  set(node, item) {
    const values = {};
    for (const { name, value } of node.parameters.assignments.assignments) {
      values[name] = name in (this.asked.config ?? {}) ? this.asked.config[name] : this.value(node, value, item);
    }
    const binary = node.parameters.options.stripBinary === false && item.binary ? { binary: item.binary } : {};
    return { json: node.parameters.includeOtherFields ? { ...item.json, ...values } : values, ...binary };
  }

  sort(input, count, place) {
    const outputs = Array.from({ length: count }, () => []);
    for (const item of input) outputs[place(item)]?.push(item);
    return outputs;
  }

  switch(node, input) {
    const rules = node.parameters.rules.values;
    return this.sort(input, rules.length, (item) => rules.findIndex((rule) => this.holds(node, rule.conditions, item)));
  }

  holds(node, { conditions }, item) {
    if (conditions.length !== 1 || conditions[0].operator.operation !== 'true') throw new Error(`${node.name}: what condition is this?`);
    return Boolean(this.value(node, conditions[0].leftValue, item));
  }

  wait(node, input) {
    const seconds = Number(this.value(node, node.parameters.amount, input[0]));
    if (!(seconds > 0) || node.parameters.unit !== 'seconds') throw new Error(`${node.name}: waits ${seconds} ${node.parameters.unit}`);
    this.told.waits.push(seconds);
    this.clock += seconds * 1000;
    return [input];
  }

  respond(node, input) {
    const { responseBody, options } = node.parameters;
    const body = this.value(node, responseBody, input[0]);
    this.told.answers.push({ status: Number(this.value(node, options.responseCode, input[0])), body: JSON.parse(body) });
    return [input];
  }

  // --- what is outside

  outside(node, input) {
    const calls = (this.told.calls[node.name] ??= []);
    const { jsCode, ...parameters } = node.parameters;
    for (const item of input) calls.push(this.evaluated(node, parameters, item));
    const script = this.asked.script[node.name];
    if (!script) throw new Error(`nobody said what ${node.name} answers`);
    const turn = script[Math.min(this.runs.get(node.name)?.length ?? 0, script.length - 1)];
    if (turn === 'away') return input; // an error outside of the node's own handling: n8n hands on the input
    if (Array.isArray(turn)) return turn.map((answer) => this.filled(answer, input[0]));
    return input.map((item) => this.filled(turn, item));
  }

  // "%name%" in an answer is that field of the job; {pass: {...}} is the item that came in with more fields.
  filled(answer, item) {
    const job = this.runs.get('Prepare job')?.at(-1)[0]?.json ?? {};
    const text = JSON.stringify(answer).replace(/%(\w+)%/g, (whole, name) => JSON.stringify(job[name] ?? whole).replace(/^"|"$/g, ''));
    const { pass, ...made } = JSON.parse(text);
    return pass ? { ...item, json: { ...item.json, ...pass } } : made;
  }

  evaluated(node, value, item) {
    if (typeof value === 'string') return this.value(node, value, item);
    if (Array.isArray(value)) return value.map((part) => this.evaluated(node, part, item));
    if (value === null || typeof value !== 'object') return value;
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, this.evaluated(node, part, item)]));
  }

  // --- expressions and code

  value(node, text, item) {
    if (typeof text !== 'string' || !text.startsWith('=')) return text;
    const language = { JSON, Object, Array, String, Number, Boolean, Math, Date, encodeURIComponent };
    return expressions.execute(text.slice(1), { ...language, ...this.world(node, [item]), $json: item.json });
  }

  async code(node, input) {
    const { jsCode } = node.parameters;
    if (!scripts.has(jsCode)) scripts.set(jsCode, new vm.Script(`(async function () {${jsCode}\n})`, { filename: `${node.name}.js` }));
    const context = vm.createContext({ Buffer, ...this.world(node, input), clock: this.clock });
    vm.runInContext('{ const now = clock; Date.now = () => now; delete globalThis.clock; }', context);
    const getBinaryDataBuffer = async (index, name) => Buffer.from(input[index].binary[name].data, 'base64');
    const result = await scripts.get(jsCode).runInContext(context).call({ helpers: { getBinaryDataBuffer } });
    this.clock += 1; // a millisecond
    return this.items(node, result);
  }

  items(node, result) {
    const list = Array.isArray(result) ? result : [result];
    for (const item of list) {
      const known = item && typeof item === 'object' && Object.keys(item).every((name) => ['json', 'binary', 'pairedItem'].includes(name));
      if (!known || !item.json || typeof item.json !== 'object' || Array.isArray(item.json)) throw new Error(`${node.name}: these are no items: ${JSON.stringify(result)}`);
      if ('error' in item.json && Object.keys(item.json).every((name) => ['error', 'message', 'details'].includes(name))) {
        throw new Error(`${node.name}: n8n would take this item for an error: ${JSON.stringify(item)}`);
      }
    }
    return copy(list);
  }

  world(node, input) {
    const items = copy(input);
    const list = (of) => ({ first: () => of[0], last: () => of.at(-1), all: () => of, itemMatching: (index) => of[index], item: of[0] });
    return {
      $: (name) => this.node(name, list), $input: list(items), $runIndex: this.runs.get(node.name)?.length ?? 0, $vars: this.asked.vars ?? {},
      $execution: { id: '7', mode: 'webhook' }, $workflow: { id: 'w', name: 'w' }, $getWorkflowStaticData: () => this.told.statics,
    };
  }

  node(name, list) {
    if (!this.nodes.has(name)) throw new Error(`Referenced node doesn't exist: ${name}`);
    const runs = this.runs.get(name);
    if (!runs) return Object.defineProperty({ isExecuted: false }, 'first', { value: () => thrown(new Error(`Node '${name}' hasn't been executed`)) });
    return { isExecuted: true, ...list(copy(runs.at(-1))) };
  }
}

async function all() {
  const told = [];
  for (const asked of given.cases) {
    const play = new Play(given.templates[asked.template], asked);
    try {
      told.push(await play.play());
    } catch (error) {
      told.push({ ...play.told, broken: `${play.told.steps.at(-1)}: ${error.stack ?? error}` });
    }
  }
  process.stdout.write(JSON.stringify(told));
}

all();
