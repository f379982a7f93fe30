"""`nnssl_cluster`: arguments, messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.cli import cluster
from nnssl.cluster_maps import fold_maps
from nnssl.cluster_maps.recipe import ClusterRecipe


def test_arguments_become_a_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def record(*arguments: object) -> tuple[Path, list[float]]:
        asked.append(arguments)
        return tmp_path, [0.25, 0.75]

    monkeypatch.setattr(fold_maps, "cluster_dataset", record)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    plain = ["-d", "27", "-c", "2d", "-f", "all", "-k", "7"]
    cluster.main([*plain, "--scales", "1", "3", "--name", "mine", "--workers", "1"])
    recipe = ClusterRecipe(clusters=7, fold="all", scales=(1.0, 3.0))
    assert asked == [(tmp_path, 27, "2d", "nnUNetPlans", recipe, "mine", 1, False)]
    assert "-tr nnSSLPixelClusteringTrainer" in capsys.readouterr().out


def test_several_folds_are_made_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    monkeypatch.setattr(
        fold_maps, "cluster_dataset", lambda *a: (made.append(a[4].fold), (tmp_path, [1.0]))[1]
    )
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    cluster.main(["-d", "27", "-c", "2d", "-f", "0", "1"])
    assert made == [0, 1]
    assert "2d 1 -p" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-d 27 -c 2d", "dataset 27: one folder of it is needed, found none"),
        ("-d 27 -c 2d -f first", "-f: found first"),
        ("-d 27 -c 2d -k 1", "clusters = 1 must be an integer from 2 to 30000"),
        ("-d 27 -c 2d --source self", "needs --checkpoint"),
    ],
)
def test_errors_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: str, message: str
) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        cluster.main(arguments.split())


def test_missing_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(SystemExit, match="nnUNet_preprocessed is not set"):
        cluster.main(["-d", "27", "-c", "2d"])
