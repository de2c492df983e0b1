"""Measures by other people's networks: on networks of random weights, saved as theirs are."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch.nn import functional
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from pipeline.evaluation.learned import LearnedMeasures, dino_features, lpips_distance
from pipeline.evaluation.measures import measure_learned
from tests.pipeline.test_evaluation import VIDEO, known, plan, values

DINO = "vit_tiny_patch16_dinov3_qkvb"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    networks = {
        "dino": timm.create_model(DINO, pretrained=False, num_classes=0),
        "lpips": torchvision.models.alexnet(weights=None),
    }
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in networks}


def test_lpips_is_torchmetrics_with_this_alexnet(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics itself asks torchvision for an AlexNet, which here is the file's."""

    def alexnet(**_: object) -> torch.nn.Module:
        network = torchvision.models.AlexNet()
        network.load_state_dict(torch.load(files["lpips"], weights_only=True))
        return network

    monkeypatch.setattr(torchvision.models, "alexnet", alexnet)
    one, other = torch.rand(2, 3, 64, 80, 3)
    distance = lpips_distance(files["lpips"])(one, other)
    planes = [frames.permute(0, 3, 1, 2) for frames in (one, other)]
    wanted = torchmetrics_lpips.learned_perceptual_image_patch_similarity(*planes, net_type="alex", normalize=True)
    torch.testing.assert_close(distance.mean(), wanted)
    assert distance.min() > 0
    assert lpips_distance(files["lpips"])(one, one).abs().max() == 0


def test_dino_features_are_the_models(files: dict[str, Path]) -> None:
    frames = torch.rand(3, 256, 256, 3)
    model = timm.create_model(DINO, pretrained=False, num_classes=0, checkpoint_path=str(files["dino"])).eval()
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        wanted = functional.normalize(model((frames.permute(0, 3, 1, 2) - mean) / std), dim=-1)
    torch.testing.assert_close(dino_features(f"{DINO}:{files['dino']}")(frames), wanted)


def test_rows_leave_out_cuts_and_the_truth_is_at_no_distance(files: dict[str, Path]) -> None:
    learned = LearnedMeasures(clip="bundled", dino=f"{DINO}:{files['dino']}", lpips=files["lpips"])
    learned.check()
    frames = known([True, False, True])
    cut = plan([0, 0, 1])
    rows = measure_learned(VIDEO, "truth", 7, cut, frames, frames.truth, learned)
    assert values(rows, "lpips") == {0: 0.0, 1: 0.0, 2: 0.0}
    for metric in ("clip_f", "dino_f"):
        found = values(rows, metric)
        assert found[0] == pytest.approx(1, abs=1e-4)
        assert found[1] < found[0], "the edit ends between the first two segments"
        assert found[2] == pytest.approx(1, abs=1e-4), "the step over the cut counts nowhere"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dino": "vit_small_patch14_dino:/x"}, r"the nearest of timm's models is 'vit_small_patch1\d_dino"),
        ({"dino": f"{DINO}:/none.pth"}, "names the weights file '/none.pth', which is not there"),
        ({"dino": f"{DINO}:LPIPS"}, "does not fit"),
        ({"lpips": Path("/none.pth")}, "--lpips is '/none.pth', which is not there; needs torchvision's"),
        ({"lpips": "DINO"}, "is no AlexNet of torchvision"),
        ({"clip": "magic"}, "embedder is 'magic'"),
    ],
)
def test_what_cannot_be_had_is_named(files: dict[str, Path], given: dict, message: str) -> None:
    given = {k: v.replace("LPIPS", str(files["lpips"])) if isinstance(v, str) else v for k, v in given.items()}
    if given.get("lpips") == "DINO":
        given["lpips"] = files["dino"]
    with pytest.raises(ValueError, match=message):
        LearnedMeasures(**given).check()
