"""PEFT's LoRA folders both ways, beside peft itself: what it saves is merged, and it loads what we write."""

import json
import shutil

import jax
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
from transformers import Qwen3VLForConditionalGeneration

import vlm3_jax
from vlm3_jax import cli, pretrained
from vlm3_jax import config as configs
from vlm3_jax.checkpoint import hf, tiny
from vlm3_jax.checkpoint.peft import CONFIG, WEIGHTS
from vlm3_jax.data.schedule import Schedule
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.tasks import protocol
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps
from vlm3_jax.train.checkpoints import Checkpoints
from vlm3_jax.train.trainable import Trainable

# peft 0.21 asks transformers 5.24 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
IDS = torch.arange(3, 23)[None]


def torch_model(folder):
    return Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[0].numpy()


def adapter_of(base, folder, **options):
    """A folder as peft saves it, its adapters drawn at random, and peft's logits."""
    torch.manual_seed(0)
    given = {"r": 3, "lora_alpha": 12, "target_modules": ["q_proj", "o_proj", "down_proj", "attn.qkv", "linear_fc2"]}
    config = peft.LoraConfig(init_lora_weights=False, **given | options)
    model = peft.get_peft_model(torch_model(base), config).eval()
    model.save_pretrained(folder)
    # A module that saves its own weights is compared through what it computes.
    return logits(model)


def convert(*arguments) -> None:
    assert cli.main(["convert", *map(str, arguments)]) == 0


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"rank_pattern": {"o_proj": 2}}], ids=str)
def test_what_peft_saves_is_merged(tiny_model, tmp_path, options):
    theirs = adapter_of(tiny_model, tmp_path / "adapter", **options)
    plain = logits(torch_model(tiny_model))
    convert(tmp_path / "adapter", tmp_path / "merged")
    ours = torch_model(tmp_path / "merged")
    assert np.abs(logits(ours) - theirs).max() < 1e-4
    assert np.abs(plain - theirs).max() > 0.1
    loaded = (
        peft.PeftModel.from_pretrained(torch_model(tiny_model), tmp_path / "adapter").merge_and_unload().state_dict()
    )
    for key, value in ours.state_dict().items():
        assert torch.allclose(value, loaded[key], rtol=0, atol=1e-6), key


def test_every_command_opens_an_adapter(tiny_model, tmp_path, capsys):
    """On the base it names, on another that is given, and on our own form of it."""
    adapter_of(tiny_model, tmp_path / "adapter")
    adapter, base = tmp_path / "adapter", shutil.copytree(tiny_model, tmp_path / "base")
    protocol.write(base, {"depth": protocol.PAPER["depth"], "pose": protocol.PAPER["pose"]})
    protocol.write(adapter, {"depth": protocol.SHORT["depth"]})
    convert(base, tmp_path / "ours")
    convert(adapter, tmp_path / "merged")
    merged = pretrained.open(tmp_path / "merged").params()
    for given in ("", base, tmp_path / "ours"):
        opened = pretrained.open(adapter, base=given)
        jax.tree.map(np.testing.assert_array_equal, opened.params(dtype="float32"), merged)
    assert pretrained.open(adapter, base=base).protocols == {
        "depth": protocol.SHORT["depth"],
        "pose": protocol.PAPER["pose"],
    }
    question = ["--question=What?", "--max-new-tokens=4"]
    told = []
    for model in ([f"--model={adapter}"], [f"--model={adapter}", f"--base={base}"], [f"--model={tmp_path / 'merged'}"]):
        capsys.readouterr()
        assert cli.main(["ask", *model, *question]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]
    assert vlm3_jax.load(adapter, max_new_tokens=4).ask([], "What?") == told[0].removesuffix("\n")
    assert cli.main(["verify", str(adapter), "--against", str(tmp_path / "merged")]) == 0
    assert cli.main(["verify", str(adapter), "--against", str(base)]) == 1
    capsys.readouterr()
    assert cli.main(["verify", str(adapter)]) == 2
    assert "transformers cannot load this; name an HF directory with --against" in capsys.readouterr().err


def trained(model, workdir, targets):
    """A workdir with one step of adapters drawn at random."""
    config = configs.base()
    config.train.lora.rank, config.train.lora.alpha, config.train.lora.targets = 3, 7.0, targets
    (cfg, params), mesh = hf.load(model), meshes.make_mesh(devices=jax.devices()[:1])
    trainable, rng = Trainable.from_config(cfg, config), np.random.default_rng(0)
    params = parameters.flatten(trainable.start(params, 0))
    drawn = {k: 0.2 * rng.standard_normal(v.shape) for k, v in params.items() if "lora" in k[-1]}
    params |= {k: (params[k] + v).astype(np.float32) for k, v in drawn.items()}
    tx = optimizers.make(cfg, config.optimizer, trainable.trained_rows)
    state = steps.create_state(cfg, parameters.nest(params), tx, mesh, trainable)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, state, Schedule(np.arange(8), ()), trainable.facts())
    checkpoints.close()
    hf.copy_files(model, workdir / "model")
    (workdir / "config.json").write_text(json.dumps({"model": str(model), "seed": 0}))
    return workdir


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ((".*_proj",), ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        # "proj" would name the patch embedding too, "q_proj" those of the other stack.
        ((r"vision\..*\.(qkv|proj)", r"text\.layers\.q_proj"), None),
    ],
    ids=["decoder", "parts"],
)
def test_what_we_write_is_loaded_by_peft(tiny_model, tmp_path, targets, names, capsys):
    workdir = trained(tiny_model, tmp_path / "run", targets)
    protocol.write(workdir / "model", {"pose": protocol.RELEASE["pose"]})
    convert(workdir, tmp_path / "adapter", "--peft")
    assert f"adapters -> PEFT adapter on {tiny_model}" in capsys.readouterr().out
    convert(workdir, tmp_path / "merged")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {CONFIG, WEIGHTS, protocol.FILE}
    theirs = peft.PeftModel.from_pretrained(torch_model(tiny_model), tmp_path / "adapter").eval()
    merged, plain = (logits(torch_model(folder)) for folder in (tmp_path / "merged", tiny_model))
    assert np.abs(logits(theirs) - merged).max() < 1e-4
    assert np.abs(plain - merged).max() > 0.01
    adapted = {name.rpartition(".lora_A")[0] for name, _ in theirs.named_modules() if name.endswith("lora_A")}
    stored = safetensors.numpy.load_file(tmp_path / "adapter" / WEIGHTS)
    assert adapted == {key.rpartition(".lora_")[0] for key in stored}
    found = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert (found["r"], found["lora_alpha"], found["base_model_name_or_path"]) == (3, 7.0, str(tiny_model))
    if names:
        assert found["target_modules"] == names
    # And the way back: the same weights as the merged ones.
    again, whole = (pretrained.open(tmp_path / name).params() for name in ("adapter", "merged"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), again, whole)


def test_adapters_that_peft_cannot_hold(tmp_path, capsys):
    model = tiny.make(tmp_path / "moe", "moe")
    workdir = trained(model, tmp_path / "run", ("router",))
    assert cli.main(["convert", str(workdir), str(tmp_path / "out"), "--peft"]) == 2
    assert "router has adapters, but in transformers a router is no linear" in capsys.readouterr().err
    convert(trained(model, tmp_path / "attention", (r".*\.[qkvo]_proj",)), tmp_path / "adapter", "--peft")
    loaded = peft.PeftModel.from_pretrained(torch_moe(model), tmp_path / "adapter").eval()
    convert(tmp_path / "adapter", tmp_path / "merged")
    assert np.abs(logits(loaded) - logits(torch_moe(tmp_path / "merged"))).max() < 1e-4


def torch_moe(folder):
    from transformers import Qwen3VLMoeForConditionalGeneration

    return Qwen3VLMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def retensor(path, change):
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


Q_A = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
FAULTS = {
    "dora": (lambda f: edit(f / CONFIG, use_dora=True), f"{CONFIG}: use_dora = True is not supported, only False"),
    "another kind": (lambda f: edit(f / CONFIG, peft_type="IA3"), f"{CONFIG}: peft_type = 'IA3' is not supported"),
    "modules": (lambda f: edit(f / CONFIG, modules_to_save=["lm_head"]), "modules_to_save is not supported; merge the"),
    "pissa": (lambda f: edit(f / CONFIG, init_lora_weights="pissa"), "init_lora_weights = 'pissa' changes the base"),
    "alpha": (lambda f: edit(f / CONFIG, lora_alpha="16"), f"{CONFIG}: lora_alpha must be a number above 0, got '16'"),
    "no base": (lambda f: edit(f / CONFIG, base_model_name_or_path=None), "base_model_name_or_path must be text, got"),
    "another base": (lambda f: edit(f / CONFIG, base_model_name_or_path="/no/where"), "/no/where: no model directory"),
    "itself": (lambda f: edit(f / CONFIG, base_model_name_or_path=str(f)), "is its own base"),
    "a list": (lambda f: (f / CONFIG).write_text("[1]"), f"{CONFIG}: expected a JSON object, got [1]"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: no such file"),
    "pickled": (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "adapter_model.bin is a pickle, which is not"),
    "one half": (lambda f: retensor(f / WEIGHTS, lambda t: t.pop(Q_A)), "lora_A None and lora_B"),
    "a shape": (lambda f: retensor(f / WEIGHTS, lambda t: t.update({Q_A: t[Q_A][:2]})), "do not fit its 96 x 48"),
    "unknown": (lambda f: retensor(f / WEIGHTS, lambda t: t.update(x=t[Q_A])), "x is no adapter of a linear"),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    adapter_of(tiny_model, folder)
    return folder


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_are_named_in_one_line(saved, tmp_path, fault):
    change, message = FAULTS[fault]
    folder = shutil.copytree(saved, tmp_path / "adapter")
    change(folder)
    with pytest.raises(UserError) as caught:
        _ = pretrained.open(folder).source
    (line,) = str(caught.value).splitlines()
    assert message in line


def test_flags_that_mean_nothing(tiny_model, saved, tmp_path, capsys):
    for arguments, message in [
        ((tiny_model, "--base", tiny_model), "is no PEFT adapter, so it has no base"),
        ((tiny_model, "--peft"), "--peft writes the adapters of a training workdir, and this is none"),
        ((saved, "--step=3"), "not a training workdir, so it has no step 3"),
    ]:
        assert cli.main(["convert", *map(str, arguments[:1]), str(tmp_path / "out"), *map(str, arguments[1:])]) == 2
        assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
