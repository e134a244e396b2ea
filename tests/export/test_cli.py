"""The two commands, as a user runs them: what they print, how they end, and what they leave."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

import erniem_rt
from erniem_export import cli, pipeline
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import ExportError
from erniem_rt import Session
from erniem_rt.files import hash_file

OPTIONAL = ["--with-position-ids", "--with-head-mask", "--with-hidden-states", "--with-attentions"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, erniem_export):
    """``random:tiny`` exported for question answering, and what the command printed."""
    output = tmp_path_factory.mktemp("exported") / "new" / "out"
    return output, erniem_export("--model", "random:tiny", "--head", "qa", "--output", output)


@pytest.fixture(scope="module")
def half(tmp_path_factory, write_checkpoint):
    """A cls checkpoint in float16."""
    return write_checkpoint(
        tmp_path_factory.mktemp("half"), edit=lambda state: {name: tensor.half() for name, tensor in state.items()}
    )


def test_an_export_reports_on_both_streams(exported):
    output, result = exported
    assert result.code == 0, result.err
    *steps, note = result.err.splitlines()
    assert steps == [
        "loading random:tiny ...",
        "tracing ErnieMForQuestionAnswering (head qa) ...",
        "writing qa.onnx and its weights ...",
        "comparing with PyTorch ...",
    ]
    assert note.startswith("passed the gate in bf16 on a CPU, ")
    head, columns, _, *rows, verdict, done = result.out.splitlines()
    assert head.startswith(f"fp32 against PyTorch {torch.__version__.split('+')[0]}, float32, ")
    assert columns.split()[:4] == ["output", "max", "mean", "p99"]
    assert [row.split()[0] for row in rows] == ["start_logits", "end_logits"]
    assert all(float(row.split()[1]) < 1e-4 for row in rows)
    assert verdict.endswith("decisions the same; passed")
    assert done.startswith(f"{output / 'qa.onnx'}: ")


def test_the_manifest_names_the_versions(exported):
    manifest = json.loads((exported[0] / "qa.json").read_text())
    assert manifest["versions"] == {
        "erniem_rt": erniem_rt.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    assert manifest["checkpoint"]["source"] == "random:tiny"
    assert manifest["checkpoint"]["sha256"] == load_checkpoint("random:tiny", "qa").identity()


def test_a_random_model_leaves_no_path_of_this_machine(exported):
    for file in exported[0].iterdir():
        for secret in (str(exported[0].parent), "/home/", str(Path.home()) + "/", str(Path.cwd()), "site-packages"):
            assert secret.encode() not in file.read_bytes(), f"{file.name} holds {secret}"


def test_verify_passes(exported, erniem_verify):
    result = erniem_verify(exported[0] / "qa.onnx", "--model", "random:tiny").ok()
    assert result.out.splitlines()[-1].endswith("passed")
    assert "comparing qa.onnx with PyTorch" in result.err
    assert "comparing qa.onnx with PyTorch" in erniem_verify(exported[0] / "qa.json", "--model", "random:tiny").err
    assert "comparing qa.onnx with PyTorch" in erniem_verify(exported[0], "--model", "random:tiny").err


@pytest.mark.parametrize("kind", ["hard links", "hub cache"])
def test_verify_through_links(kind, exported, erniem_verify, tmp_path):
    """onnx-ir refuses both as attacks."""
    folder = tmp_path / "snapshots" / "0a1b"
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for file in exported[0].iterdir():
        blob = Path(shutil.copy(file, tmp_path / "blobs"))
        if kind == "hub cache":
            (folder / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
        else:
            (folder / file.name).hardlink_to(blob)
    result = erniem_verify(folder / "qa.onnx", "--model", "random:tiny").ok()
    assert "weights the same" in result.out.splitlines()[-1]


def test_verify_refuses_weights_elsewhere(exported, erniem_verify, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "out")
    (folder / "qa.onnx").write_bytes((folder / "qa.onnx").read_bytes().replace(b"qa.onnx.data", b"qb.onnx.data"))
    (folder / "qa.onnx.data").rename(folder / "qb.onnx.data")
    manifest = json.loads((folder / "qa.json").read_text())
    manifest["files"] = {name: vars(hash_file(folder / name)) for name in ("qa.onnx", "qb.onnx.data")}
    (folder / "qa.json").write_text(json.dumps(manifest))
    result = erniem_verify(folder / "qa.onnx", "--model", "random:tiny")
    assert result.code == 1
    assert "has weights in 'qb.onnx.data', expected qa.onnx.data; export again" in result.err


def test_verify_refuses_a_plan_and_names_the_graph(erniem_verify, tmp_path):
    result = erniem_verify(tmp_path / "qa.plan", "--model", "random:tiny")
    assert result.code == 1
    expected = f"error: {tmp_path / 'qa.plan'} is a plan, and comparing it needs a GPU (make test-gpu); give "
    assert result.err == f"{expected}{tmp_path / 'qa.onnx'}, the graph beside it\n"


def test_verify_names_the_weights_that_differ(exported, erniem_verify, tmp_path):
    from safetensors.torch import save_file

    checkpoint = load_checkpoint("random:tiny", "qa")
    state = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    state["ernie_m.encoder.layers.1.linear1.bias"] += 0.1
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(checkpoint.config_text)
    result = erniem_verify(exported[0] / "qa.onnx", "--model", tmp_path)
    assert result.code == 1
    assert "FAILED" in result.out
    message = result.err.splitlines()[-1]
    assert message.startswith("error: qa.onnx does not compute what the PyTorch model computes: ")
    assert "weights are not the checkpoint's: ernie_m.encoder.layers.1.linear1.bias" in message


def test_verify_against_another_size(exported, erniem_verify, tmp_path, write_checkpoint):
    result = erniem_verify(exported[0] / "qa.onnx", "--model", write_checkpoint(tmp_path / "model", "qa"))
    assert result.code == 1
    assert "qa.onnx was exported from another checkpoint: its limits are max_length = 512, vocab_size = " in result.err
    assert result.err.endswith("and those of model are max_length = 128, vocab_size = 1000, pad_token_id = 1\n")


def test_verify_against_other_labels(erniem_export, erniem_verify, tmp_path, write_checkpoint):
    def wider(state):
        names = ("classifier.weight", "classifier.bias")
        return {**state, **{name: torch.cat([state[name], state[name][:1]]) for name in names}}

    three = write_checkpoint(tmp_path / "three")
    labels = {str(i): f"label {i}" for i in range(4)}
    four = write_checkpoint(tmp_path / "four", edit=wider, id2label=labels)
    erniem_export("--model", three, "--output", tmp_path / "out").ok()
    artifact = tmp_path / "out" / "cls.onnx"
    assert erniem_verify(artifact, "--model", four).err.splitlines()[-1] == (
        f"error: {artifact} was exported from another checkpoint: its outputs are logits (batch, 3), "
        "and those of four are logits (batch, 4)"
    )


def test_verify_against_another_head(exported, erniem_verify, tmp_path, write_checkpoint):
    result = erniem_verify(exported[0] / "qa.onnx", "--model", write_checkpoint(tmp_path / "model", "ner"))
    assert result.code == 1
    assert "error: --head qa contradicts the checkpoint: config.json names ErnieMForTokenClassification" in result.err


@pytest.mark.parametrize("name", ["nowhere.onnx", "no/such/qa.onnx", "."])
def test_verify_what_is_not_there(name, tmp_path, erniem_verify):
    result = erniem_verify(tmp_path / name, "--model", "random:tiny")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: ")


def test_verify_an_edited_artifact(exported, tmp_path, erniem_verify):
    folder = shutil.copytree(exported[0], tmp_path / "edited")
    data = folder / "qa.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    result = erniem_verify(folder / "qa.onnx", "--model", "random:tiny")
    assert result.code == 1
    assert "qa.onnx.data was changed after export" in result.err
    manifest = json.loads((folder / "qa.json").read_text())
    (folder / "qa.json").write_text(json.dumps({**manifest, "precision": {}}))
    assert (
        "has weights in None; expected one of fp32" in erniem_verify(folder / "qa.onnx", "--model", "random:tiny").err
    )


def test_half_precision_gives_the_same_artifact_as_its_upcast(half, tmp_path, erniem_export):
    """And the base of the same checkpoint goes into the same folder."""
    for head in ("auto", "base"):
        erniem_export("--model", half, "--head", head, "--output", tmp_path / "out").ok()
    weights = {tensor.name: tensor for tensor in onnx.load(tmp_path / "out" / "cls.onnx").graph.initializer}
    for name, tensor in load_checkpoint(str(half)).model.state_dict().items():
        stored = weights.get(name) or weights[f"{name}.T"]
        values = onnx.numpy_helper.to_array(stored)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values if stored.name == name else values.T, tensor.half().numpy())
    for head in ("cls", "base"):
        with Session(tmp_path / "out" / f"{head}.onnx") as session:
            session.run(input_ids=[[0, 5, 2]])


def test_optional_inputs_and_outputs(tmp_path, write_checkpoint, erniem_export):
    folder = write_checkpoint(tmp_path / "model", "mc")
    erniem_export("--model", folder, "--output", tmp_path / "out", *OPTIONAL).ok()
    with Session(tmp_path / "out" / "mc.onnx") as session:
        assert {spec.name: spec.shape for spec in session.manifest.inputs} == {
            "input_ids": ("batch", "choices", "sequence"),
            "attention_mask": ("batch", "choices", "sequence"),
            "position_ids": ("batch", "choices", "sequence"),
            "head_mask": (2, 2),
        }
        found = session.run(input_ids=np.full((2, 4, 7), 5), head_mask=np.zeros((2, 2), np.float32))
        assert {name: array.shape for name, array in found.items()} == {
            "logits": (2, 4),
            **{f"hidden_states.{i}": (8, 7, 16) for i in range(3)},
            **{f"attentions.{i}": (8, 2, 7, 7) for i in range(2)},
        }
        assert not found["attentions.1"].any()


def test_embeddings_instead_of_ids(tmp_path, write_checkpoint, erniem_export):
    folder = write_checkpoint(tmp_path / "model", "base")
    erniem_export("--model", folder, "--output", tmp_path / "out", "--with-inputs-embeds").ok()
    with Session(tmp_path / "out" / "base.onnx") as session:
        assert [spec.name for spec in session.manifest.inputs] == ["inputs_embeds", "attention_mask"]
        found = session.run(inputs_embeds=np.ones((2, 5, 16)))
        assert {name: array.shape for name, array in found.items()} == {
            "last_hidden_state": (2, 5, 16),
            "pooler_output": (2, 16),
        }


@pytest.mark.parametrize("options", [[], ["--fp16", "--target", "portable"], ["--int8"]], ids=" ".join)
def test_the_base_of_a_head_without_pooler(options, tmp_path, write_checkpoint, erniem_export, erniem_verify):
    folder = write_checkpoint(tmp_path / "model", "ner")
    result = erniem_export("--model", folder, "--head", "base", "--output", tmp_path / "out", *options).ok()
    assert "the weights have no pooler: the graph has no pooler_output" in result.err
    artifact = tmp_path / "out" / "base.onnx"
    with Session(artifact) as session:
        assert {name: array.shape for name, array in session.run(input_ids=[[0, 5, 6, 2]]).items()} == {
            "last_hidden_state": (1, 4, 16)
        }
    verified = erniem_verify(artifact, "--model", folder).ok()
    assert "pooler_output" not in verified.out
    with_pooler = erniem_verify(artifact, "--model", write_checkpoint(tmp_path / "other", "base"))
    assert "was exported from another checkpoint: its outputs are last_hidden_state" in with_pooler.err


def test_a_head_mask_for_a_pruned_model(tmp_path, write_checkpoint, export_fails):
    def prune(state):
        for name in state:
            if "layers.0.self_attn.self_attn." in name or "layers.0.self_attn.out_proj.weight" in name:
                state[name] = (state[name][:, :8] if "out_proj" in name else state[name][:8]).clone()
        return state

    folder = write_checkpoint(tmp_path / "model", edit=prune, pruned_heads={"0": [1]})
    assert load_checkpoint(str(folder)).config.pruned_heads == {0: [1]}
    assert "this checkpoint is pruned" in export_fails(folder, "--with-head-mask")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model"],
        ["--model", "random:tiny", "--head", "mlm"],
        ["--model", "random:tiny", "--with-everything"],
        ["random:tiny"],
        ["--model", "random:tiny", "--output", "~nobody-has-this-name/out"],
        ["--model", "random:tiny", "--target", "tensorflow"],
    ],
)
def test_usage_errors(arguments, erniem_export):
    result = erniem_export(*arguments)
    assert result.code == 2
    assert result.err.startswith("usage: erniem-export")
    assert not result.out


def test_an_old_name_of_a_target_is_answered_with_the_new_one(erniem_export, tmp_path):
    result = erniem_export("--model", tmp_path / "nowhere", "--target", "any")
    assert result.err.splitlines()[0] == ("warning: --target any will go in the next release: write --target portable.")
    assert result.code == 1


def test_the_checkpoint_in_this_folder_is_the_default(
    erniem_export, erniem_verify, write_checkpoint, quick_gate, tmp_path, monkeypatch
):
    folder = write_checkpoint(tmp_path / "model", "qa")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(folder)
    result = erniem_export("--head", "qa").ok()
    assert {path.name for path in folder.iterdir()} == {*before, "qa.json", "qa.onnx", "qa.onnx.data"}
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    erniem_verify("qa.onnx").ok()
    monkeypatch.chdir(tmp_path)
    result = erniem_export()
    assert result.code == 2
    assert "--model is missing, and there is no ErnieM checkpoint in this folder" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["qa.onnx"], ["--model", "random:tiny"]])
def test_usage_errors_of_verify(arguments, erniem_verify):
    result = erniem_verify(*arguments)
    assert result.code == 2
    assert arguments != ["qa.onnx"] or "there is no artifact qa.onnx: expected an exported folder" in result.err
    assert result.err.startswith("usage: erniem-verify")


def test_the_home_folder_is_expanded(tmp_path, erniem_export, monkeypatch):
    asked = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pipeline, "export", lambda options, _: asked.append(options) or sys.exit(5))
    erniem_export("--model", "random:tiny", "--output", "~/out")
    assert asked[0].output == tmp_path / "out"


def in_a_process(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("function", ["main", "verify_main"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_need_nothing_large(function, option):
    code = (
        "import sys\n"
        f"from erniem_export.cli import {function}\n"
        "try:\n"
        f"    {function}(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    print('torch' in sys.modules, 'numpy' in sys.modules, end.code)"
    )
    result = in_a_process(code, option)
    assert result.stdout.splitlines()[-1] == "False False 0"
    assert "usage: erniem-" in result.stdout or f"erniem-rt {erniem_rt.__version__}" in result.stdout


@pytest.mark.parametrize("module", ["erniem_export", "erniem_export.cli"])
def test_the_package_is_the_command(module):
    command = [sys.executable, "-m", module, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, f"erniem-rt {erniem_rt.__version__}\n")


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_packages_of_the_exporter(missing, tmp_path):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\nfrom erniem_export.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    result = in_a_process(code, "--model", "random:tiny", "--output", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr == f'error: {missing} is not installed: pip install "erniem-rt[export]"\n'


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory: you tried to ..."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes."),
    ],
    ids=["Python", "torch", "torch on Linux"],
)
def test_out_of_memory(error, export_fails, monkeypatch):
    def exhaust(*_):
        raise error

    monkeypatch.setattr(pipeline, "trace", exhaust)
    assert export_fails("random:tiny") == "out of memory; nothing was written"


def test_no_room_for_temporary_files(erniem_verify, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/a")

    monkeypatch.setattr(pipeline, "verify", refuse)
    result = erniem_verify("qa.onnx", "--model", "random:tiny")
    assert (result.code, result.err) == (1, "error: /tmp/a: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_report_that_cannot_be_printed():
    code = """
import sys
from types import SimpleNamespace
from erniem_export import cli
sys.modules["erniem_export.pipeline"] = SimpleNamespace(verify=lambda *_, **__: SimpleNamespace(parity={}))
cli._reports = lambda _: ["a report"]
sys.exit(cli.verify_main(sys.argv[1:]))
"""
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code, "qa.onnx", "--model", "random:tiny"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == ("error: done, but the report cannot be printed: No space left on device")


def test_outside_of_the_main_thread(exported, erniem_verify):
    found = []
    thread = threading.Thread(target=lambda: found.append(erniem_verify(exported[0] / "no.onnx", "--model", "x")))
    thread.start()
    thread.join()
    assert found[0].code == 1


def test_what_torch_cannot_trace(export_fails, monkeypatch):
    def refuse(*_):
        raise torch.onnx.OnnxExporterError("Failed to export the model\n with many\n lines")

    monkeypatch.setattr(pipeline, "trace", refuse)
    assert export_fails("random:tiny").startswith("torch cannot trace this model: Failed to export the model; ")


@pytest.mark.parametrize(("number", "over", "code"), [(signal.SIGTERM, True, 143), (signal.SIGINT, False, 130)])
def test_an_export_that_is_told_to_stop(number, over, code, exported, tmp_path):
    """While it traces, with telemetry off by then; what was there before stays as it was."""
    output = tmp_path / "out"
    if over:
        shutil.copytree(exported[0], output)
    before = {file.name: file.read_bytes() for file in output.iterdir()} if over else None
    # Tests that a shell runs in the background have children that ignore SIGINT.
    program = """
import os, signal, sys, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)
warnings.simplefilter("always")
from erniem_export.cli import main
status = main(sys.argv[1:])
print(os.environ["ORT_DISABLE_TELEMETRY"], "onnxruntime" in sys.modules)
sys.exit(status)
"""
    command = [sys.executable, "-c", program, "--model", "random:tiny", "--head", "qa", "--output", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    while not said or not said[-1].startswith("tracing"):
        assert process.poll() is None
        said.append(process.stderr.readline())
    time.sleep(0.2)
    os.kill(process.pid, number)
    printed, after = process.communicate(timeout=60)
    assert process.returncode == code
    assert "telemetry" not in "".join(said)
    assert after == "error: interrupted; nothing was written\n"
    assert printed == ("" if code == 143 else "1 True\n")
    assert before == ({file.name: file.read_bytes() for file in output.iterdir()} if output.exists() else None)


@pytest.fixture
def on_hangup():
    """Set what SIGHUP does, until the test is over."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_interrupt_the_cleaning(tmp_path):
    """``timeout`` sends two, to its child and to the group; so do the shell of a closed terminal and the kernel."""
    # In a process of its own: a signal that comes too late would end it.
    program = """
import os, shutil, signal, sys
from erniem_export import cli, pipeline
rmtree = shutil.rmtree
def interrupt(*_):
    os.kill(os.getpid(), number)
def remove(path, *arguments, **options):
    print("second", number)
    interrupt()
    rmtree(path, *arguments, **options)
pipeline.trace, shutil.rmtree = interrupt, remove
signal.signal(signal.SIGHUP, signal.SIG_DFL)
for number in (signal.SIGTERM, signal.SIGHUP):
    try:
        cli.main(["--model", "random:tiny", "--head", "qa", "--output", sys.argv[1]])
    except SystemExit as end:
        print("code", end.code)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["second", "15", "code", "143", "second", "1", "code", "129"], done
    assert list(tmp_path.iterdir()) == []


def test_under_nohup_a_hangup_stays_ignored(on_hangup, erniem_export, monkeypatch):
    def hung_up(*_):
        signal.raise_signal(signal.SIGHUP)
        time.sleep(0.01)
        raise ExportError("went on")

    on_hangup(signal.SIG_IGN)
    monkeypatch.setattr(pipeline, "export", hung_up)
    assert erniem_export("--model", "random:tiny").err == "error: went on\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_signal_handler_is_put_back(number, erniem_export):
    before = signal.getsignal(number)
    assert erniem_export("--model", "random:nope").code == 1
    assert signal.getsignal(number) is before


def test_mistakes_of_ours_are_not_hidden(monkeypatch):
    monkeypatch.setattr(pipeline, "load_checkpoint", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["--model", "random:tiny", "--output", os.devnull + "-never"])
