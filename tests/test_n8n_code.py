"""n8n/source/comfyui.js against the Python that it repeats: the same words about the same input."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import graphs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_node import SOURCE, ScriptFailed, evaluate
from recorded import scenarios

from comfyflow import Workflow, WorkflowInvalid
from comfyflow.media.sniffing import media_type_of
from comfyflow.models import JobResult, OutputFile
from comfyflow.protocol import Malformed, parse_history
from comfyflow.rows import batch_of
from comfyflow.store import JobEvent, outcome_id
from comfyflow.submit import key_id
from comfyflow.traits import traits

EXAMPLES = Path(__file__).parent.parent / "examples"
BROAD = settings(max_examples=5, deadline=None, derandomize=True)  # each example is a batch, and a process


def told(script: str, **inputs: Any) -> Any:
    return evaluate(["comfyui.js"], script, **inputs)


# --- the graph ---------------------------------------------------------------------------------

READ_GRAPH = """
const seen = (text) => {
  let value;
  try { value = readJson(text); } catch (error) { return { problem: error.message }; }
  const { graph, problem } = checkedGraph(value);
  if (problem !== undefined) return { problem };
  const handed = JSON.parse(JSON.stringify(graph)); // as n8n hands it to the next node
  const made = (id) => ({ ...traits(handed, id), seed: writeJson(traits(handed, id).seed) });
  return { canonical: canonical(handed), graph: writeJson(handed), prompt: promptText(handed),
    parts: [...ids, ...keysOf(handed)].map((id) => [rawText(id), made(id), titleOf(handed, id)]) };
};
return texts.map(seen);
"""
STRANGE_IDS = ["5.0.1", "none", "constructor", "__proto__"]


def of_javascript(texts: list[str]) -> list[dict[str, Any]]:
    """The same as `of_python`, from comfyui.js."""
    found: list[dict[str, Any]] = told(READ_GRAPH, texts=texts, ids=STRANGE_IDS)
    for case in found:
        if "problem" not in case:
            case["digest"] = hashlib.sha256(case.pop("canonical").encode("ascii")).hexdigest()
            for _, made, _ in case["parts"]:
                made["seed"] = json.loads(made["seed"])
    return [told_the_same(case) for case in found]


def of_python(text: str) -> dict[str, Any]:
    try:
        workflow = Workflow.parse(text)
    except WorkflowInvalid as error:
        return told_the_same({"problem": error.reason})
    ids = [*STRANGE_IDS, *workflow.nodes]
    return {
        "digest": workflow.digest,
        "graph": compact(workflow.to_dict()),
        "prompt": workflow.prompt_text,
        "parts": [[node_id, made_of(workflow, node_id), workflow.title(node_id)] for node_id in ids],
    }


def made_of(workflow: Workflow, node_id: str) -> dict[str, Any]:
    made = traits(workflow, node_id)
    return {"seed": made.seed, "model": made.model, "loras": list(made.loras)}


def compact(value: Any) -> str:
    """As JavaScript would write it, the order of keys and every digit included."""
    return json.dumps(value, separators=(",", ":"))


def told_the_same(case: dict[str, Any]) -> dict[str, Any]:
    """Only what both can be asked for: of a text that is no JSON that it is none; of numbers the value."""
    if "problem" in case:
        words = re.sub(r"(not JSON|cannot be read): .*", r"\1", case["problem"], flags=re.DOTALL)
        words = re.sub(r"slot (True|False)", lambda found: found[0].lower(), words)
        words = re.sub(r"^(this is in UI format), .*", r"\1", words)  # which Python converts with a server
        return {"problem": re.sub(r"^the (text|file) is nested", "it is nested", words)}
    return {**case, "graph": compact(json.loads(case["graph"]))}


def assert_same(texts: list[str]) -> None:
    for text, javascript in zip(texts, of_javascript(texts), strict=True):
        assert javascript == of_python(text), text


def recorded_graphs() -> Iterator[Any]:
    for scenario in scenarios():
        for line in scenario.http:
            if line.get("method") == "POST" and isinstance(line.get("request_json"), dict):
                yield line["request_json"]


def test_recorded_and_example_graphs_are_read_as_python_reads_them() -> None:
    made = [graphs.image(), graphs.steps(), graphs.alone("A", x=1.0), graphs.partly_valid()]
    texts = [json.dumps(graph) for graph in [*made, *recorded_graphs()]]
    texts += [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.json")]
    assert len(texts) > 40
    assert_same(texts)


def one(value: str, more: str = "") -> str:
    """The text of a graph whose one node has this value."""
    return f'{{"1": {{"class_type": "A", "inputs": {{"x": {value}}}{more}}}}}'


NUMBER_TEXTS = (
    "0 -0 5 -7 9007199254740991 9007199254740993 18446744073709551615 123456789012345678901234567890"
    " 0.0 -0.0 1.0 1.50 0.1 0.0001 0.00001 0.00012345 1e-5 1e-7 1E5 1e15 1e16 1e21 1e22 1e+22 1.5e300"
    " 5e-324 1e400 -1e400 1e-400 NaN Infinity -Infinity 123456789012345678 123456789.123456789 2.5e-5 1e100"
    " 1234567890123456.5 12345678901234567.5 9999999999999998.0"
)
ODD_VALUES = [
    '"\\u0001#5"', '"\\u0001#NaN"', '"\\u0001order"', '"\\u0001\'x"', '{"\\u0001order": ["b"], "a": 1}',
    '{"\\u0001#5": 1}', '{"__proto__": {"y": 1}, "constructor": 2}', '"\\ud83d\\ude00"', '"\\ud800"',
    '"\x7f"', '"é\u2028\u2029"', '{"\U0001f600": 1, "\uff5e": 2, "z": 3}', '{"b": 1, "a": 2, "b": 3}',
    '"\\u0000"', '{"10": 1, "9": 2, "a": 3, "0": 4, "01": 5, "-1": 6}', "[]", "{}",
    "[[], {}, null, true, false]",
    '"\\"\\\\\\/\\b\\f\\n\\r\\t"', '"\\\\"', '["none", 0]', '["1", 0]', '["1", -1]', '["1", 1.0]',
    '["1", true]', '["none", "x"]', '["1", -0]', '["constructor", 0]', '["1", 99999999999999999999]',
    '["none", 1e400]', '["none", 1.5]', '["1"]', '["1", 0, 0]', '["none", false]', '["\\u0001#1", 0]',
    "[" * 100 + "]" * 100, "[" * 99 + "]" * 99, "[" * 98 + "1" + "]" * 98,
    "1" * 4300, "1" * 4301, "-" + "1" * 4300, "-" + "1" * 4301, "0." + "1" * 5000,
]  # fmt: skip
EDITOR = '{"nodes": [{"id": 1, "type": "A"}], "links": []}'
NO_WORKFLOWS = [
    "", " ", "null", "5", "NaN", "[]", '"x"', "{}", "true", EDITOR, f'{{"prompt": {EDITOR}}}',
    '{"prompt": 5}', '{"1": 5}', '{"1": null}', '{"1": NaN}', '{"1": []}', '{"1": {}}',
    '{"1": {"class_type": ""}}',
    '{"1": {"class_type": 7}}', '{"1": {"class_type": NaN, "inputs": {}}}', '{"prompt": {}}',
    '{"1": {"class_type": "A"}}', '{"1": {"class_type": "A", "inputs": []}}',
    "[" * 200_000, '{"a":' * 200_000,
    '{"1": {"class_type": "A", "inputs": null}}', '{"\\ud800": 5}',
]  # fmt: skip
NO_JSON = (
    '01 1. .5 +1 - --1 1e \'x\' "x [1,] {"a":1,} {a:1} {,} [,] {"a"1} {"a":1"b":2} [1}'
    ' -NaN nul True nan Infinit \u00a01 "\\x" "\\u12" "\\u12g4" "\\" 1" 0x5 1_0 } ] : ,'
)
WRAPPED = [
    f'{{"prompt": {one("5.0")}, "client_id": "x"}}', '{"prompt": {"class_type": "A", "inputs": {}}}',
    one("1", ', "is_changed": NaN'), one("1", ', "is_changed": [{"a": -Infinity}], "b": [[NaN]]'),
    one('[{"a": [Infinity]}]'), one('{"a": -1e999}'), one("1", ', "_meta": {"title": NaN}'),
    "\ufeff" + one("1"), one("1") + " x", one("1") + "\n", one("[1 2]"), one('"a\nb"'),
    " \t\r\n" + one(" 1 "),
    one('{"a": {"a": ' * 60 + "1" + "}" * 120),
]  # fmt: skip


def test_numbers_stay_as_they_were_written() -> None:
    assert_same([one(number) for number in NUMBER_TEXTS.split()])


def test_odd_values_are_read_as_python_reads_them() -> None:
    titled = [one("1", f', "_meta": {{"title": {text}}}') for text in ODD_VALUES]
    assert_same([*map(one, ODD_VALUES), *titled, *(one("1", f', "other": {text}') for text in ODD_VALUES)])


def test_what_is_no_workflow_is_refused_in_the_same_words() -> None:
    assert_same([*NO_WORKFLOWS, *WRAPPED, *(one(text) for text in NO_JSON.split(" "))])


def test_titles_are_stripped_as_python_strips() -> None:
    letters = [*map(chr, range(0x21)), *"\x7f\x85\xa0\u1680\u180e\u2000\u200b\u2028\u202f\u205f\u3000\ufeff"]
    assert_same([one("1", f', "_meta": {{"title": {json.dumps(letter)}}}') for letter in letters])
    prompts = [{"1": graphs.alone("A", prompt=f"{letter}a{letter}")["1"]} for letter in letters]
    assert_same([json.dumps(graph) for graph in prompts])


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{\n  'a': 1}", (2, 3)),
        ('{"a": 1,\n\n  "b": tru}', (3, 8)),
        ('["\U0001f600", x]', (1, 7)),
        ("[1]]", (1, 4)),
    ],
)
def test_a_fault_in_the_json_is_told_with_its_place(text: str, where: tuple[int, int]) -> None:
    with pytest.raises(json.JSONDecodeError) as python:
        json.loads(text)
    assert (python.value.lineno, python.value.colno) == where
    with pytest.raises(ScriptFailed, match=f"not JSON: .*line {where[0]}, column {where[1]}"):
        told("readJson(text)", text=text)


IDS = ["1", "2", "3", "10", "11", "5:3", "a", "\uff5e", "\U0001f600", "\x01a"]
TEXTS = ["a fox", " a fox ", "", "\x01 cat", "disable", "enable"]
FILES = ["x.safetensors", "y.PT", "a/l.ckpt", "é.gguf\n", "\x01.sft", "no.zip", ".bin", "z.safetensors"]
NUMBERS = [0, 1, -5, 2**53 + 1, 2**64 - 1, 5.0, 0.5, 1e22, -0.0, True, False]
LINKED = "positive negative model images on_true on_false samples"
NAMES = {
    "links": f"{LINKED} clip vae conditioning conditioning_2 cond_x positive_2 neg_text model_2 base_model",
    "texts": "prompt text text_g string_b text_7 a.prompt clip_l populated_text text_\u0663 3 12 \x01text",
    "numbers": "seed noise_seed value int number steps cfg",
    "switches": "add_noise switch condition boolean",
    "files": "unet ckpt_name unet_name model_name lora_1 lora_name upscale_model control_net model_path LORA",
}
KIND_OF = {name: kind for kind, names in NAMES.items() for name in names.split(" ")}
SHAPES = [
    *(
        "add_noise noise_seed steps model positive negative samples",
        "seed model positive negative",
        "model positive",
    ),
    *(
        "on_true on_false switch",
        "on_true on_false boolean",
        "ckpt_name",
        "model lora_name",
        "value",
        "text clip",
    ),
    *(
        "images",
        "samples vae",
        "model conditioning",
        "upscale_model images",
        "add_noise noise_seed model images",
    ),
]
VALUES: dict[str, list[Any]] = {
    "links": [*TEXTS, 5, None],
    "texts": TEXTS,
    "numbers": NUMBERS,
    "switches": ["disable", "enable", False, True, 0, 0.0, 1],
    "files": [
        *FILES,
        {"on": True, "lora": "p.pt"},
        {"on": False, "lora": "q.pt"},
        {"on": 1, "lora": "r.pt"},
        [],
    ],
}
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(NUMBERS)),
    lambda parts: st.one_of(
        st.lists(parts), st.dictionaries(st.one_of(st.text(), st.sampled_from(IDS)), parts)
    ),
    max_leaves=8,
)


def made_up_graph(dice: random.Random) -> dict[str, Any]:
    """A graph full of what the rules look at; links go anywhere, in circles too."""
    ids = dice.sample(IDS, dice.randint(2, 9))
    return {node_id: made_up_node(dice, ids) for node_id in ids}


def made_up_node(dice: random.Random, ids: list[str]) -> dict[str, Any]:
    names = [name for name in dice.choice(SHAPES).split(" ") if dice.random() < 0.9]
    names = list(dict.fromkeys([*names, *dice.sample(sorted(KIND_OF), dice.choice([0, 0, 1, 3]))]))
    dice.shuffle(names)
    node = {"class_type": dice.choice(["KSampler", "BasicGuider", "SaveImage", "Switch", "\x01Guider"])}
    more = {"_meta": {"title": dice.choice(TEXTS)}} if dice.random() < 0.3 else {}
    return {**node, "inputs": {name: made_up_value(dice, ids, name) for name in names}, **more}


def made_up_value(dice: random.Random, ids: list[str], name: str) -> Any:
    kind = KIND_OF[name]
    if dice.random() < (0.9 if kind == "links" else 0.15):
        return [dice.choice(ids), dice.randint(0, 2)]
    return dice.choice(VALUES[kind])


def test_made_up_graphs_have_the_same_prompt_digest_and_traits() -> None:
    dice = random.Random(17)
    assert_same([json.dumps(made_up_graph(dice)) for _ in range(600)])


@BROAD
@given(st.lists(JSON, min_size=30, max_size=60))
def test_made_up_values_come_back_as_they_were(values: list[Any]) -> None:
    assert_same([one(json.dumps(value), f', "_meta": {json.dumps(value)}') for value in values])


@BROAD
@given(st.lists(st.text('{}[]",:0179.eE+-\\ truefalsnNI\n', max_size=12), min_size=200, max_size=300))
def test_what_is_json_for_python_is_json_here(texts: list[str]) -> None:
    script = "return texts.map((t) => { try { return writeJson(readJson(t)); } catch { return ''; } });"
    for text, found in zip(texts, told(script, texts=texts), strict=True):
        assert found == (python_json(text) or ""), text


def python_json(text: str) -> str | None:
    try:
        return written_back(
            json.loads(text, parse_float=Token, parse_int=Token, parse_constant=lambda _: None)
        )
    except ValueError:
        return None


class Token(str):
    """A number as it was written."""

    __slots__ = ()


def written_back(value: Any) -> str:
    match value:
        case Token():
            return value
        case list():
            return f"[{','.join(map(written_back, value))}]"
        case dict():
            return f"{{{','.join(f'{json.dumps(key)}:{written_back(part)}' for key, part in value.items())}}}"
    return json.dumps(value)


def test_nothing_but_a_number_gets_out_of_a_mark() -> None:
    marks = [
        "\x01#5",
        "\x01#-0",
        '\x01#5,"x":1',
        "\x01#",
        "\x01#0x5",
        "\x01#05",
        "\x01#NaN",
        "\x01#5\n",
        "\x01'\x01#5",
    ]
    script = "return [writeJson(marks), marks.map(isNumber), marks.map(plain), marks.map(String)];"
    text, numbers, values, _ = told(script, marks=marks)
    given_back = ['\x01#5,"x":1', "\x01#", "\x01#0x5", "\x01#05", None, "\x01#5\n", "\x01#5"]
    assert json.loads(text) == [5, 0, *given_back]
    assert numbers == [True, True] + [False] * 7
    assert values == [5, 0, *given_back]


def test_an_object_that_was_changed_after_it_was_read_keeps_the_order_that_it_had() -> None:
    script = """
      const { b, ...rest } = readJson('{"b": 1, "7": 2, "3": 3.0}');
      return writeJson({ ...rest, new: undefined, more: 1e400, last: [-0.5, undefined, null] });
    """
    assert told(script) == '{"7":2,"3":3.0,"more":null,"last":[-0.5,null,null]}'


def test_values_for_people_have_no_marks() -> None:
    script = "return plain(readJson(text));"
    text = '{"9": 9007199254740992.0, "1": [1.0, NaN, "\\u0001#5", {"b": null, "a": -0}], "\\u0001x": 0}'
    expected = {"1": [1, None, "\x01#5", {"b": None, "a": 0}], "9": 2**53, "\x01x": 0}
    assert told(script, text=text) == expected


def test_numbers_are_known_in_every_shape() -> None:
    script = (
        "return readJson(text).map((value) => [isNumber(value), isNumber(value) ? numberOf(value) : null]);"
    )
    found = told(script, text='[5, 1.0, 9007199254740992.0, 1e22, NaN, Infinity, "5", null, true, [5]]')
    assert found == [[True, 5], [True, 1], [True, 2**53], [True, 1e22]] + [[False, None]] * 6


# --- how a job ended ---------------------------------------------------------------------------

READ_HISTORY = """
return bodies.map((body) => {
  try { return entryOutcome(JSON.parse(JSON.stringify(readJson(body)[id]))); } catch { return null; }
});
"""


def assert_same_ends(entries: list[str]) -> None:
    bodies = [f'{{"job": {entry}}}' for entry in entries]
    for entry, found in zip(entries, told(READ_HISTORY, bodies=bodies, id="job"), strict=True):
        assert found == outcome_of(entry), entry


def _without_server(output: OutputFile) -> dict[str, Any]:
    """Whose it is is told by pools of servers alone."""
    return {key: value for key, value in parts_of(output).items() if key != "server"}


def outcome_of(entry: str) -> dict[str, Any] | None:
    try:
        result = parse_history(f'{{"job": {entry}}}'.encode(), "job")
    except Malformed:
        return None
    assert isinstance(result, JobResult)
    failure = None if result.failure is None else parts_of(result.failure)
    return {
        "state": result.state.value,
        "failure": failure,
        "outputs": [_without_server(output) for output in result.outputs],
        "texts": [parts_of(text) for text in result.texts],
        "reused_nodes": list(result.reused_nodes),
        "started_at": result.started_at,
        "ended_at": result.ended_at,
    }


def parts_of(value: Any) -> dict[str, Any]:
    parts = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {name: list(part) if isinstance(part, tuple) else part for name, part in parts.items()}


def recorded_entries() -> Iterator[str]:
    for scenario in scenarios():
        for line in scenario.http:
            answer = line.get("response_json")
            if "/history" in line.get("path", "") and isinstance(answer, dict):
                yield from map(json.dumps, answer.values())
            if "raw body" in line.get("note", ""):
                yield from map(json.dumps, json.loads(line["note"].partition(": ")[2]).values())


def test_recorded_histories_end_as_python_says() -> None:
    entries = list(recorded_entries())
    assert len(entries) > 80
    assert any("NaN" in entry for entry in entries)
    assert_same_ends(entries)


def entry_of(outputs: Any = None, messages: Any = None, status: Any = "success") -> str:
    return json.dumps(
        {"prompt": [1], "outputs": outputs, "status": {"status_str": status, "messages": messages}}
    )


def nested(levels: int) -> Any:
    value: Any = {"filename": "deep.png"}
    for _ in range(levels):
        value = [value]
    return value


def test_odd_histories_end_as_python_says() -> None:
    error = {
        "node_id": 3,
        "node_type": "K",
        "exception_message": " bad\n",
        "exception_type": "E",
        "traceback": ["a", 1],
    }
    blocked = ["execution_error", {"exception_type": "ExecutionBlocked"}]
    stamps = [0, -1, 1500, 1700000000123, 1.5, 1e15, 1e16, 10**30, True, "soon", None]
    times = [[["execution_start", {"timestamp": s}], ["execution_success", {"timestamp": s}]] for s in stamps]
    nodes = ["2", 5, "10", "9", "\U0001f600", "\uff5e", None, True, 1.5]
    named: list[Any] = [True, 1.5, "7", 10**30, []]
    cached = ["execution_cached", {"nodes": nodes}]
    file = {"filename": "a.png", "subfolder": "s", "type": "temp"}
    odd = {"filename": "b.png", "subfolder": None, "type": ""}
    models = [
        "m.glb",
        "x/y\\m.GLB [temp]",
        "m.glb []",
        "glb",
        "no.png",
        "",
        " [output]",
        "a [b] [input]",
        "m.obj]",
        5,
    ]
    entries = [
        *("{}", "[]", "5", "NaN", "true", '{"outputs": 5, "status": 7}', '{"outputs": [], "status": []}'),
        *(entry_of(messages=messages) for messages in times),
        *(
            entry_of(messages=[[name, error]], status="error")
            for name in ("execution_error", "execution_interrupted")
        ),
        entry_of(messages=[["execution_error", error], ["execution_interrupted", {}]], status="error"),
        entry_of(messages=[["execution_error", {**error, "node_id": None, "exception_message": None}]]),
        *(entry_of(messages=[["execution_error", {"node_id": node}]]) for node in named),
        *(entry_of(messages=[blocked], status=status) for status in ("success", "error", None, 5)),
        entry_of(messages=[None, ["execution_error"], ["execution_error", None], [1, {}]], status="error"),
        entry_of(messages=[["execution_error", {"traceback": [None, True, False, 1.0, 10**30]}]]),
        entry_of({"2": {"a": [file]}, "10": {"a": [file]}, "9": {"b": "t"}, "2.1.0": {"c": ["u"]}}, [cached]),
        entry_of(
            {"10": {"a": [file]}, "9": {"a": [odd]}, "x": {"5": ["t"], "2": "u"}, "3": None, "4": [file]}
        ),
        entry_of({"1": {"__proto__": [file], "constructor": ["x"]}, "__proto__": {"a": [odd]}}),
        *(entry_of({"1": {"a": nested(levels)}}) for levels in (0, 7, 8, 9)),
        *(
            entry_of({"1": {key: [model, "x"]}})
            for key in ("result", "model_file", "other")
            for model in models
        ),
        entry_of(
            {
                "1": {
                    "result": "m.glb",
                    "t": "one",
                    "u": [],
                    "v": ["a", 5],
                    "w": [["m.glb"]],
                    "z": ["", "\x01#5"],
                }
            }
        ),
        entry_of({"1": {"t": ["\ud800", "\x01#5", "é"], "\ud800": [{"filename": "\udc00.png"}]}}),
        '{"outputs": {"1": {"a": [{"filename": "x.png", "v": NaN}], "t": [NaN], "b": 1e5}}, "status": null}',
        '{"status": {"messages": [["execution_start", {"timestamp": NaN}], ["execution_success", {}]]}}',
    ]
    assert_same_ends(entries)


KEYS = st.sampled_from(
    ["images", "text", "result", "model_file", "gifs", "10", "9", "filename", "subfolder", "type"]
)
SHOWN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from(["a.png", "m.glb", "x [temp]", "", "d/m.obj"]),
    ),
    lambda parts: st.one_of(st.lists(parts, max_size=3), st.dictionaries(KEYS, parts, max_size=3)),
    max_leaves=6,
)
OUTPUTS = st.dictionaries(st.sampled_from(IDS), st.dictionaries(KEYS, SHOWN, max_size=3), max_size=4)


@BROAD
@given(st.lists(OUTPUTS, min_size=60, max_size=80))
def test_made_up_outputs_have_the_same_files_and_texts(made: list[dict[str, Any]]) -> None:
    assert_same_ends([entry_of(outputs, [["execution_cached", {"nodes": ["1", "a"]}]]) for outputs in made])


# --- ids and names -----------------------------------------------------------------------------

WORDS = [
    "a",
    "é",
    "\U0001f600",
    "x" * 200,
    "a\0b",
    "order-17/5",
    "0" * 55,
    "0" * 56,
    "0" * 64,
    "\uffff",
    "\x7f\x80\u0800",
]


def again_id(prompt_id: str) -> str:
    """As runner.py names the job that replaces a lost one."""
    return str(uuid5(NAMESPACE_URL, f"comfyflow:again:{prompt_id}"))


@pytest.mark.parametrize(
    ("function", "python"), [("keyId", key_id), ("againId", again_id), ("outcomeId", outcome_id)]
)
def test_ids_are_those_of_python(function: str, python: Callable[[str], str]) -> None:
    assert told(f"words.map({function})", words=WORDS) == [python(word) for word in WORDS]


def test_an_event_has_the_id_that_python_gives_it() -> None:
    one_id = "1D2C3B4A-0000-4000-8000-00000000ABCD"
    words = [
        *WORDS,
        one_id,
        f"{{{one_id}}}",
        f"urn:uuid:{one_id}",
        one_id.replace("-", ""),
        one_id[:-1],
        "",
        "\ud800",
    ]
    batch = batch_of(JobEvent("job", "said", event_id=word) for word in words)
    assert told("words.map(eventId)", words=words) == [row["event_id"] for row in batch.events]


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ScriptFailed, match="must not be empty"):
        told("keyId('')")


def test_random_ids_are_uuids_and_never_the_same() -> None:
    ids = told("Array.from({ length: 1000 }, randomId)")
    assert len({item[:8] for item in ids}) > 990
    assert {(UUID(item).version, str(UUID(item)) == item) for item in ids} == {(4, True)}


def test_media_types_are_those_that_python_names() -> None:
    source = (SOURCE / "comfyui.js").read_text(encoding="utf-8")
    table = source.partition("const MEDIA_TYPES = {")[2].partition("};")[0]
    suffixes = " ".join(re.findall(r": '([^']+)'", table)).split()
    assert len(suffixes) > 40
    assert told("names.map(mediaType)", names=[f"a.b/x.{suffix.upper()}" for suffix in suffixes]) == [
        media_type_of(suffix) for suffix in suffixes
    ]
    assert told("names.map(mediaType)", names=["png", "x", "x.", "", "a.png/b", "x.nix"]) == [None] * 6


NAMES_OF_FILES = [
    ("ComfyUI_00001_.png", "ComfyUI_00001_.png"),
    ("../../etc/passwd", "passwd"),
    ("C:\\x\\a b.png", "a_b.png"),
    ("C:a.png", "C_a.png"),
    (".hidden.png", "hidden.png"),
    ("...", "output"),
    ("", "output"),
    ("/", "output"),
    ("..\\", "output"),
    ("Ünïcode é.webp", "Unicode_e.webp"),
    ("\U0001f600\u202egpj.exe\0", "__gpj.exe_"),
    ("NUL.png", "_NUL.png"),
    ("com1", "_com1"),
    ("con.tar.gz", "_con.tar.gz"),
    ("console.png", "console.png"),
    ("a.png.", "a.png"),
    ("x" * 300 + ".safetensors", "x" * 108 + ".safetensors"),
    ("x" * 300, "x" * 120),
    ("a." + "x" * 300, "a." + "x" * 118),
    ("x" * 115 + "....." * 9 + ".png", "x" * 115 + ".png"),
]


def test_names_are_safe_on_any_system() -> None:
    found = told("names.map((name) => safeName(name))", names=[name for name, _ in NAMES_OF_FILES])
    assert found == [safe for _, safe in NAMES_OF_FILES]


@BROAD
@given(st.lists(st.text(), min_size=200), st.integers(10, 60))
def test_a_name_of_any_text_is_safe(names: list[str], limit: int) -> None:
    for safe in told("names.map((name) => safeName(name, limit))", names=names, limit=limit):
        assert re.fullmatch(rf"(?!\.)[A-Za-z0-9._-]{{1,{limit}}}(?<!\.)", safe), safe
