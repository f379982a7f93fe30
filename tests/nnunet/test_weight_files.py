"""Weights of every maker are read without running code, recognised, and named as a U-Net's."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from networks import checkpoint, configuration, dataset, plans
from safetensors.torch import save_file

from nnssl.cli.inspect import main as inspect
from nnssl.finetuning.names import name_once
from nnssl.finetuning.structure import describe
from nnssl.finetuning.weights import asked_keys, fit, load
from nnssl.modules import unet
from nnssl.nnunet.plan_like import plan_like, read_source
from nnssl.nnunet.planned_network import build_planned_network
from nnssl.nnunet.runs import WeightSource, find_named_file
from nnssl.nnunet.weight_files import (
    ADAPTATION_PLAN,
    READ_AS,
    as_source,
    find_inputs,
    find_weight_file,
    read_weights,
)

RESENC_L = {"features": (32, 64, 128, 256, 320, 320), "blocks": (1, 3, 4, 6, 6, 6)}


def make_resenc(wide=8):
    """State dict and numbers of DKFZ's residual encoder, thinner; keys as in its files."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    features = [count // wide for count in RESENC_L["features"]]
    torch.manual_seed(0)
    network = ResidualEncoderUNet(
        1, 6, features, torch.nn.Conv3d, 3, [1, 2, 2, 2, 2, 2], RESENC_L["blocks"], 1, [1] * 5,
        True, torch.nn.InstanceNorm3d, {"affine": True}, None, None, torch.nn.LeakyReLU,
    )  # fmt: skip
    return network.state_dict(), features


def adaptation_plan(stem="encoder.stem", encoder="encoder.stages"):
    return {
        "architecture_plans": {
            "arch_class_name": "ResEncL",
            "arch_kwargs": None,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": {
            "plans_name": "nnsslPlans",
            "dataset_name": "Dataset745_OpenMind",
            "configurations": {"onemmiso": {"spacing": [1, 1, 1], "patch_size": [160, 160, 160]}},
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [160, 160, 160],
        "key_to_encoder": encoder,
        "key_to_stem": stem,
        "keys_to_in_proj": ["encoder.stem.convs.0.conv"],
        "key_to_lpe": None,
    }


def save(content, file, **options):
    torch.save(content, file, **options)
    return file


def test_a_checkpoint_with_an_adaptation_plan(tmp_path, capsys):
    weights, features = make_resenc()
    moved = {key.replace("encoder.", "net.enc.", 1): t for key, t in weights.items()}
    plan = adaptation_plan("net.enc.stem", "net.enc.stages")
    content = {"network_weights": moved, ADAPTATION_PLAN: plan, "citations": ["Wald et al."]}
    read = read_weights(save(content, tmp_path / "dkfz.pth"))
    assert read[READ_AS]["format"] == "DKFZ nnssl with an adaptation plan"
    assert "Wald et al." in read[READ_AS]["citation"]
    assert find_inputs(read)["spacing"] == [1, 1, 1]
    found = describe(read["network_weights"])
    assert (found.architecture, found.dimension) == ("ResidualEncoderUNet", 3)
    assert list(found.features) == features
    assert found.blocks == RESENC_L["blocks"]
    inspect([str(tmp_path / "dkfz.pth"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["blocks"] == list(RESENC_L["blocks"])
    assert told["patch_size"] == [160, 160, 160]


@pytest.mark.parametrize("folder", ["", "fold_all"])
def test_an_adaptation_plan_beside_the_file(folder, tmp_path):
    """As in the maker's repositories and result folders; one of other tensors is left alone."""
    weights, _ = make_resenc()
    moved = {key.replace("encoder.", "net.enc.", 1): t for key, t in weights.items()}
    (tmp_path / folder).mkdir(exist_ok=True)
    file = save({"network_weights": moved}, tmp_path / folder / "checkpoint_final.pth")
    beside = tmp_path / "adaptation_plan.json"
    beside.write_text(json.dumps(adaptation_plan("net.enc.stem", "net.enc.stages")))
    read = read_weights(file)
    assert read[READ_AS]["format"] == "DKFZ nnssl with an adaptation plan"
    assert find_inputs(read)["spacing"] == [1, 1, 1]
    assert describe(read["network_weights"]).blocks == RESENC_L["blocks"]
    beside.write_text(json.dumps(adaptation_plan("other.stem", "other.stages")))
    assert ADAPTATION_PLAN not in read_weights(file)
    beside.write_text("[1]")
    with pytest.raises(ValueError, match=r"adaptation_plan\.json"):
        read_weights(file)


def test_plans_like_weights_of_another_maker(tmp_path):
    """The network that they describe takes all of them; strides are read from the decoder."""
    weights, features = make_resenc()
    content = {"network_weights": weights, ADAPTATION_PLAN: adaptation_plan()}
    read = read_weights(save(content, tmp_path / "dkfz.pth"))
    target = plans(c3d_fullres=configuration((64, 64, 64), (2, 2, 2), batch=2))
    made, _ = plan_like(target, dataset(), read_source(read), "3d_fullres", "Like")
    knobs = made["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert knobs["features_per_stage"] == features
    assert knobs["strides"] == [[1] * 3, *[[2] * 3] * 5]
    assert made["configurations"]["3d_fullres"]["spacing"] == [2, 2, 2]
    network = build_planned_network(made, "3d_fullres", dataset())
    for part in ("encoder", "trained"):
        transfer = fit(as_source(read), network, asked_keys(network, part))
        assert transfer.share == 1
        assert {match.outcome for match in transfer.matches} == {"loaded", "random"}


def test_sparks_file_without_a_plan_names_every_tensor_twice(tmp_path):
    weights, _ = make_resenc()
    read = read_weights(save({"network_weights": weights}, tmp_path / "spark.pth"))
    assert describe(read["network_weights"]).parameters == sum(
        tensor.numel() for tensor in name_once(weights).values()
    )


def test_wrapped_plain_networks_load_whole(make_unet, tmp_path):
    """VoComni's file for nnU-Net is of this kind."""
    source, target = make_unet(3), make_unet(3, seed=1)
    state = {f"module.backbone.{key}": tensor for key, tensor in source.state_dict().items()}
    for content in (state, {"state_dict": state, "epoch": 3}):
        read = read_weights(save(content, tmp_path / "VoComni_nnunet.pt"))
        transfer = fit(as_source(read), target, asked_keys(target, "trained"))
        load(target, transfer)
        assert transfer.share == 1
        assert all(
            torch.equal(a, b)
            for (name, a), b in zip(target.named_parameters(), source.parameters(), strict=True)
            if "seg_layers" not in name
        )


def genesis(scale=8):
    """The 3D U-Net of Models Genesis: stages of two convolutions, the second twice as wide."""
    state = {}
    inputs = 1
    for name, width in (("64", 64), ("128", 128), ("256", 256), ("512", 512)):
        width //= scale
        for number, count in enumerate((width // 2, width)):
            layer = f"module.down_tr{name}.ops.{number}"
            state[f"{layer}.conv1.weight"] = torch.randn(count, inputs, 3, 3, 3)
            state[f"{layer}.conv1.bias"] = torch.zeros(count)
            for part in ("weight", "bias", "running_mean", "running_var"):
                state[f"{layer}.bn1.{part}"] = torch.ones(count)
            inputs = count
    state["module.up_tr256.up_conv.weight"] = torch.randn(64, 64, 2, 2, 2)
    return {"epoch": 1, "state_dict": state}


@pytest.mark.parametrize("old", [True, False])
def test_models_genesis_in_both_formats_of_torch(make_unet, tmp_path, old):
    file = save(genesis(), tmp_path / "g.pt", _use_new_zipfile_serialization=not old)
    read = read_weights(file)
    assert read[READ_AS]["format"].startswith("Models Genesis")
    target = make_unet(3, features=(8, 16, 32, 64))
    transfer = fit(as_source(read), target, asked_keys(target, "encoder"))
    outcomes = {match.key: match.outcome for match in transfer.matches}
    assert outcomes["encoder.stages.0.0.convs.0.conv.weight"] == "random"  # 4 of its 8 features
    assert transfer.share > 0.3


def test_an_old_file_is_as_safe_as_a_new_one(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for old in (True, False):
        file = tmp_path / f"evil{old}.pt"
        save({"state_dict": Evil()}, file, _use_new_zipfile_serialization=not old)
        with pytest.raises(ValueError, match=r"could run code.*weights\.trust_pickle=true"):
            read_weights(file)
    assert not (tmp_path / "ran").exists()
    cut = tmp_path / "cut.pt"
    whole = save(genesis(), tmp_path / "g.pt", _use_new_zipfile_serialization=False).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_weights(cut)


def test_a_trusted_file_is_unpickled(make_unet, tmp_path):
    network = make_unet(2)
    file = save(network, tmp_path / "whole_network.pt")
    with pytest.raises(ValueError, match="could run code"):
        read_weights(file)
    assert describe(read_weights(file, trust_pickle=True)["network_weights"]).dimension == 2


def test_a_key_map_of_the_user(make_unet, tmp_path, monkeypatch):
    weights = {
        key.replace("encoder.stages.", "tower/").replace("conv.weight", "w"): tensor
        for key, tensor in name_once(make_unet(2).state_dict()).items()
    }
    file = save(weights, tmp_path / "own.pt")
    with pytest.raises(ValueError, match=r"no names of nnU-Net's U-Nets.*weights\.key_map"):
        as_source(read_weights(file))
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "about: {name: Tower, licence: MIT}\n"
        "recognised_by: tower/.*\n"
        "keys: {'tower/(.*)\\.w': 'encoder.stages.\\1.conv.weight'}\n"
    )
    read = read_weights(file, key_map=str(keys))
    assert (read[READ_AS]["format"], read[READ_AS]["licence"]) == ("Tower", "MIT")
    assert describe(read["network_weights"]).features == (4, 6, 8)
    (tmp_path / "mine" / "weights").mkdir(parents=True)
    shutil.copy(keys, tmp_path / "mine" / "weights")
    monkeypatch.setenv("nnssl_configs", str(tmp_path / "mine"))  # for all that reads weights
    found = read_weights(file)
    assert found[READ_AS] == read[READ_AS]
    assert found["network_weights"].keys() == read["network_weights"].keys()
    keys.write_text("about: {}\nrecognised_by: '('\nkeys: {}\n")
    with pytest.raises(ValueError, match=r"keys\.yaml.* pattern is wrong"):
        read_weights(file, key_map=str(keys))


def resnet_names(style: str, name: str) -> str:
    """The name that a maker gives a tensor of timm's or torchvision's ResNet."""
    if style == "byol_pytorch":  # the network's children in a row
        children = ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"]
        first, rest = name.split(".", 1)
        return f"module.online_network.encoder.{children.index(first)}.{rest}"
    return {"solo": "backbone.", "moco": "module.encoder_q.", "timm": ""}[style] + name


@pytest.mark.parametrize("style", ["timm", "solo", "moco", "byol_pytorch"])
def test_the_encoder_computes_what_timms_resnet_computes(make_resnet, tmp_path, style):
    """Of any maker's file; its momentum copy and its head are left out."""
    from timm.models.resnet import Bottleneck, ResNet

    torch.manual_seed(1)
    source = ResNet(Bottleneck, (1, 1, 1, 1), channels=(4, 4, 6, 8), num_classes=0)
    with torch.no_grad():
        for tensor in source.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) / 8 + 0.01)
    images = torch.randn(2, 3, 64, 96)
    state = {resnet_names(style, key): value for key, value in source.state_dict().items()}
    more = {"momentum_" + key: value + 1 for key, value in state.items() if style == "solo"}
    file = save({"state_dict": {**more, **state}, "epoch": 3}, tmp_path / "resnet.pth")
    read = read_weights(file)
    assert read[READ_AS]["format"] == "ResNet (torchvision or timm)"
    target = make_resnet(channels=3)
    transfer = fit(as_source(read), target, asked_keys(target, "trained"))
    load(target, transfer)
    assert transfer.share == transfer.share_of_encoder == 1  # the decoder is nobody's
    assert {match.outcome for match in transfer.matches} == {"loaded", "random"}
    for network in (source.train(), source.eval()):
        target.train(network.training)
        found = unet.encode(target, images)
        assert torch.equal(found[-1], network.forward_features(images))
        assert torch.equal(found[1], network.act1(network.bn1(network.conv1(images))))
    narrow = make_resnet(channels=1)
    load(narrow, fit(as_source(read), narrow, asked_keys(narrow, "encoder")))
    grey = images[:, :1]
    expected = source.forward_features(grey.expand(-1, 3, -1, -1))
    found = unet.encode(narrow.eval(), grey)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_resnet_of_other_blocks_is_recognised_and_refused(make_unet, make_resnet, tmp_path):
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    for block, message in ((BasicBlock, "no names of nnU-Net's U-Nets"), (Bottleneck, "")):
        network = ResNet(block, (1, 1, 1, 1), channels=(4, 4, 6, 8), num_classes=0)
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        read = read_weights(tmp_path / "model.safetensors")
        assert read[READ_AS]["format"].startswith("ResNet")
        if message:
            with pytest.raises(ValueError, match=message):
                as_source(read)
    for residual in (False, True):
        target = make_unet(2, residual)
        with pytest.raises(ValueError, match=r"nnssl_plan_like"):
            fit(as_source(read), target, asked_keys(target, "trained")).require(0.5)


def test_plans_like_those_of_a_file_of_a_resnet(make_resnet):
    network = make_resnet()
    weights = {"network_weights": network.state_dict()}
    structure = describe(network.state_dict())
    assert structure.features == tuple(unet.output_channels(network))
    assert (structure.architecture, structure.channels) == ("ResNetUNet", 1)
    planned, description = configuration([70, 52], [1, 1]), dataset()
    source = read_source(weights)
    made, _ = plan_like(plans(c2d=planned), description, source, "2d", "Like")
    assert made["configurations"]["2d"]["patch_size"] == [64, 64]
    built = build_planned_network(made, "2d", description)
    transfer = fit(as_source(weights), built, asked_keys(built, "trained"))
    assert transfer.share == 1
    assert {match.outcome for match in transfer.matches} == {"loaded", "random"}


def test_the_decoder_of_a_resnet_closes_no_block_of_a_residual_encoder(make_unet, make_resnet):
    source, target = make_resnet(), make_unet(2, True)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    asked = asked_keys(target, "trained")
    load(target, fit(as_source({"network_weights": source.state_dict()}), target, asked))
    for key, value in target.encoder.state_dict().items():
        assert torch.equal(value, before[f"encoder.{key}"])


def test_what_is_no_weights_is_refused(tmp_path):
    for content in ({"a": 1}, [torch.zeros(1)], {"state_dict": {"a": 3}}):
        with pytest.raises(ValueError, match=r"x\.pt cannot be read as a checkpoint"):
            read_weights(save(content, tmp_path / "x.pt"))
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="damaged or no file of safetensors"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("wrong", [None, [1], "text", 3, {"a": 1}, {"pretrain_plan": []}])
def test_wrong_types_in_what_others_write_are_named(tmp_path, wrong):
    """In an adaptation plan, and in the metadata of safetensors; deep JSON has an end."""
    weights = name_once(make_resenc()[0])
    file, other = tmp_path / "dkfz.pth", tmp_path / "model.safetensors"
    plan = {**adaptation_plan(), "key_to_stem": wrong} if isinstance(wrong, dict) else wrong
    save({"network_weights": weights, ADAPTATION_PLAN: plan}, file)
    with pytest.raises(ValueError, match=r"dkfz\.pth cannot be read"):
        read_weights(file)
    for told in (json.dumps(wrong), "{", "[" * 10**5, json.dumps({"init_args": {"plans": 1}})):
        if told == json.dumps({"a": 1}) or "pretrain_plan" in told:
            continue  # nothing of it is read
        save_file({"a": torch.zeros(1)}, other, {"nnssl_checkpoint": told})
        with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
            read_weights(other)


@pytest.mark.parametrize(
    "shape", [(), (4,), (4, 1, 3), (0, 1, 3, 3), (4, 1, 2, 2), (4, 1, 3, 3, 3, 3)]
)
def test_tensors_of_any_shape_are_told_and_never_crash(make_unet, tmp_path, shape):
    target = make_unet(2)
    keys = [key for key in name_once(target.state_dict()) if key.endswith("weight")]
    for key in (
        keys[0],
        keys[2],
        "decoder.transpconvs.0.weight",
        "decoder.stages.0.convs.0.conv.weight",
    ):
        weights = {**make_unet(2).state_dict(), key: torch.ones(shape)}
        read = read_weights(save(weights, tmp_path / "a.pth"))
        transfer = fit(as_source(read), target, asked_keys(target, "trained"))
        outcomes = {match.key: match.outcome for match in transfer.matches}
        assert outcomes[key] in ("skipped", "adapted", "random"), key
        load(target, transfer)
        describe(read["network_weights"])


def test_a_model_folder_stands_for_its_one_model(tmp_path):
    """TotalSegmentator's folders are of this kind."""
    folder = tmp_path / "Dataset291_X" / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"
    entry = configuration((16, 16, 16), (1.5, 1.5, 1.5))
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.parent.mkdir(parents=True)
    stock = checkpoint(entry, "3d_fullres", own=False)
    stock["init_args"]["dataset_json"] = dataset()
    save(stock, file)
    assert find_weight_file(folder) == file
    assert find_named_file(WeightSource(source=str(folder))) == file
    read = read_weights(file)
    assert read[READ_AS]["format"] == "nnU-Net v2"
    assert find_inputs(read)["spacing"] == [1.5, 1.5, 1.5]
    assert as_source(read).channels == ["MR0"]
    (folder / "fold_1").mkdir()
    save(stock, folder / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(FileNotFoundError, match="is a folder, it holds"):
        find_named_file(WeightSource(source=str(folder)))


def test_inspect_says_which_plans_it_fits(tiny_dataset, make_unet, tmp_path, capsys):
    features = (4, 6, 8)
    save(make_unet(2, features=features).state_dict(), tmp_path / "a.pth")
    inspect([str(tmp_path / "a.pth"), "-d", "999", "--json"])
    fits = json.loads(capsys.readouterr().out)["fits"]
    by_name = {row["configuration"]: row for row in fits}
    assert by_name["2d"]["share_of_encoder"] > 0.5
    assert any("2D to 3D" in each for each in by_name["3d_fullres"]["adapted"])
    inspect([str(tmp_path / "a.pth")])
    text = capsys.readouterr().out
    assert "PlainConvUNet" in text
    assert "sha256" in text
    assert "of encoder" in text
