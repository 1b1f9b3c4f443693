"""From noise to images: guidance on part of the steps, rows that begin later, reused features, padding, precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from genview.errors import UserError
from genview.generators import Text
from genview.generators.latent import LatentDiffusion, LatentSettings
from genview.generators.sampler import Course, Step, denoise, noise_for
from genview.generators.text import TextTower
from genview.generators.unet import Unet, outer, whole
from tiny import tiny_text, tiny_tokenizer, tiny_unet, tiny_vae

WIDTH, ROWS = 8, 4
SCHEDULE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
GUIDANCE = torch.tensor([1.0, 3.0, 5.0, 9.0])


def deeper_unet() -> Any:
    """Three layers in the last block and a mid block, as Stable Diffusion has."""
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=(2, 4, 4),
        norm_num_groups=8,
    )


def diffusion(settings: LatentSettings, scheduler: Any = None, net: Any = None) -> LatentDiffusion:
    torch.manual_seed(0)
    net = net or tiny_unet(WIDTH)
    chosen = scheduler or diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False)
    return LatentDiffusion(net, tiny_vae(), chosen, settings)


def known(seed: int, rows: int = ROWS) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    shapes = {"encoder_hidden_states": (rows, 5, 16), "class_labels": (rows, 2 * WIDTH)}
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


@torch.no_grad()
def images(made: LatentDiffusion, rows: slice = slice(ROWS), **more: Any) -> Tensor:
    latents, seeds = noise_for(range(ROWS), made.latent_shape, "latent"), range(ROWS)
    given, nothing = ({name: value[rows] for name, value in known(n).items()} for n in (1, 2))
    return made.images(latents[rows], GUIDANCE[rows], given, nothing, seeds=seeds[rows], **more)


def calls_of(made: LatentDiffusion) -> list[int]:
    """Rows of every call of the whole network from now on."""
    rows: list[int] = []
    made.unet.net.register_forward_pre_hook(lambda _net, args: rows.append(len(args[0])))
    return rows


def test_guidance_on_an_interval_costs_half_outside_it() -> None:
    everywhere, part, nowhere = (
        diffusion(LatentSettings(steps=4, interval=interval)) for interval in ((0.0, 1.0), (0.25, 0.75), (0.0, 0.0))
    )
    counted = [calls_of(made) for made in (everywhere, part, nowhere)]
    found = [images(made) for made in (everywhere, part, nowhere)]
    assert counted == [[8, 8, 8, 8], [4, 8, 8, 4], [4, 4, 4, 4]]
    assert (found[0] - found[1]).abs().max() > 1e-3
    torch.testing.assert_close(found[0][0], found[2][0], msg="a guidance of 1 is none")
    assert (found[0][1:] - found[2][1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_that_is_none(interval: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="interval"):
        replace(LatentSettings(), interval=interval).check()


SOLVERS: list[Any] = [
    diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False),
    diffusers.DPMSolverMultistepScheduler(**SCHEDULE),
    diffusers.UniPCMultistepScheduler(**SCHEDULE),
]


@pytest.mark.parametrize("scheduler", SOLVERS, ids=lambda s: type(s).__name__)
def test_rows_that_begin_at_different_steps_share_a_batch(scheduler: Any) -> None:
    latents, begin = noise_for(range(5), (2, 3, 3), "latent"), torch.tensor([2, 0, 5, 2, 0])
    guidance = torch.tensor([1.0, 3.0, 2.0, 4.0, 1.0])
    seen: list[tuple[int, list[int]]] = []

    def predict(x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        seen.append((len(x), list(range(5)) if step.rows is None else step.rows.tolist()))
        return torch.tanh(x) * (1 + step.time / 1000), 0.3 * x if step.guided else None

    together = denoise(predict, Course(scheduler, 6), latents, guidance, begin=begin)
    assert [rows for _, rows in seen] == [[1, 4]] * 2 + [[0, 1, 3, 4]] * 3 + [list(range(5))]
    assert all(count == len(rows) for count, rows in seen)
    for i in range(5):
        row = slice(i, i + 1)
        alone = denoise(predict, Course(scheduler, 6), latents[row], guidance[row], begin=begin[row])
        torch.testing.assert_close(together[row], alone)


# Inside the scheduler a tensor becomes an array in a way that NumPy 2 frowns upon.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_row_that_begins_late_follows_diffusers_own_steps() -> None:
    """DPM-Solver++ from the third of six steps, as an image-to-image pipeline would run it."""
    scheduler: Any = SOLVERS[1]
    latents = noise_for([0], (2, 3, 3), "latent")
    found = denoise(
        lambda x, _step: (torch.sin(x), None), Course(scheduler, 6), latents, torch.ones(1), begin=torch.tensor([2])
    )
    own: Any = diffusers.DPMSolverMultistepScheduler(**SCHEDULE)
    own.set_timesteps(6)
    own.set_begin_index(2)
    x = latents
    for t in own.timesteps[2:]:
        x = own.step(torch.sin(x), t, x).prev_sample
    assert torch.equal(found, x)


def test_the_two_halves_of_the_network_are_the_network() -> None:
    torch.manual_seed(0)
    for net, given in ((deeper_unet(), {}), (tiny_unet(WIDTH), {"class_labels": known(1)["class_labels"]})):
        net = net.eval()
        x, t, text = torch.randn(ROWS, 4, 16, 16), torch.tensor(431), known(1)["encoder_hidden_states"]
        told = {"encoder_hidden_states": text, **given}
        with torch.no_grad():
            expected = net(x, t, text, return_dict=False, **given)[0]
            found, deep = whole(net, x, t, told)
            again = outer(net, x, t, told, deep)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(again, expected)
        with torch.no_grad():
            assert (outer(net, x, t, told, torch.zeros_like(deep)) - expected).abs().max() > 1e-3


def test_reuse_runs_the_whole_network_every_so_often_and_whenever_the_rows_change() -> None:
    made = diffusion(LatentSettings(steps=6, reuse=3, interval=(0.0, 0.5)))
    deep: list[int] = []
    made.unet.net.mid_block.register_forward_pre_hook(lambda _net, args: deep.append(len(args[0])))
    found = images(made)
    assert deep == [8, 4], "steps 0 and 3; guidance ends before step 3, with another number of rows"
    exact = images(diffusion(LatentSettings(steps=6, interval=(0.0, 0.5))))
    difference = (found - exact).abs().mean()
    assert 1e-4 < difference < 0.5 * exact.std(), "near, and not the same"
    switched = diffusion(LatentSettings(steps=6, reuse=3, interval=(0.0, 0.3)))
    deep.clear()
    switched.unet.net.mid_block.register_forward_pre_hook(lambda _net, args: deep.append(len(args[0])))
    images(switched)
    assert deep == [8, 4, 4], "step 2 has other rows than step 0 and cannot use its features"


def test_reuse_of_a_network_of_another_kind() -> None:
    net: Any = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    Unet(net)
    with pytest.raises(UserError, match=r"generator\.reuse"):
        Unet(net, reuse=2)


def test_a_compiled_network_always_sees_full_batches() -> None:
    plain, compiled = (diffusion(LatentSettings(steps=2, compile=on)) for on in (False, True))
    counted = calls_of(compiled)
    images(compiled)
    last = images(compiled, rows=slice(1, 3), begin=torch.tensor([0, 0]))
    assert counted == [8] * 4
    torch.testing.assert_close(last, images(plain, rows=slice(1, 3)))
    assert len(last) == 2


@pytest.mark.parametrize("reuse", [1, 2])
def test_compiling_changes_no_view(reuse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyTorch's tracing alone: building kernels takes a minute on two cores."""
    made = diffusion(LatentSettings(steps=2, reuse=reuse))
    expected = images(made)
    torch._dynamo.reset()
    traced = {part: torch.compile(part, dynamic=False, backend="eager", fullgraph=True) for part in made.unet._parts}
    monkeypatch.setattr(Unet, "_built", lambda _self, part: traced[part])
    torch.testing.assert_close(images(made), expected)


def test_few_step_solvers_roll_the_dice_of_each_row() -> None:
    scheduler: Any = diffusers.LCMScheduler(**SCHEDULE)
    made = diffusion(LatentSettings(steps=3, solver="lcm"), scheduler)
    together = images(made)
    torch.testing.assert_close(images(made), together)
    for i in range(ROWS):
        torch.testing.assert_close(images(made, rows=slice(i, i + 1))[0], together[i])


def test_a_variance_that_is_predicted_beside_is_left_out() -> None:
    class Twice(torch.nn.Module):
        config: Any = tiny_unet(WIDTH).config
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, x: Tensor, *_args: Any, **_more: Any) -> tuple[Tensor]:
            return (torch.cat([x, 7 * x], dim=1),)

    class Once(Twice):
        def forward(self, x: Tensor, *_args: Any, **_more: Any) -> tuple[Tensor]:
            return (x,)

    settings = LatentSettings(steps=2)
    torch.testing.assert_close(*(images(diffusion(settings, net=net())) for net in (Twice, Once)))


@pytest.mark.parametrize(("settings", "side"), [(LatentSettings(), 16), (LatentSettings(size=24), 12)])
def test_views_are_made_at_the_networks_size_or_the_one_asked_for(settings: LatentSettings, side: int) -> None:
    assert diffusion(settings).latent_shape == (4, side, side)


@pytest.mark.parametrize(("settings", "fold"), [({"size": 47}, 2), ({"size": 22, "reuse": 2}, 4)])
def test_a_size_that_does_not_fit(settings: dict[str, Any], fold: int) -> None:
    with pytest.raises(UserError, match=f"multiple of {fold} pixels"):
        diffusion(LatentSettings(**settings))


def test_the_tiny_decoder_stands_in_for_the_vae() -> None:
    torch.manual_seed(0)
    tiny: Any = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    made = LatentDiffusion(
        tiny_unet(WIDTH), tiny, diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False), LatentSettings(steps=1)
    )
    latents = torch.randn(6, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(made._decoded(latents), tiny.decode(latents).sample)


def test_exact_is_a_copy_in_float32() -> None:
    made = diffusion(LatentSettings(steps=1))
    assert made.exact() is made
    made.unet.net.bfloat16()
    exact = made.exact()
    assert (made.unet.net.dtype, exact.unet.net.dtype) == (torch.bfloat16, torch.float32)


class TestText:
    @pytest.fixture
    def tower(self, tmp_path_factory: pytest.TempPathFactory) -> TextTower:
        torch.manual_seed(0)
        return TextTower(tiny_tokenizer(tmp_path_factory.mktemp("words")), tiny_text(), Text("bad", "cafe"))

    def test_rows_get_their_own_text_or_the_default(self, tower: TextTower) -> None:
        prompt, negative = tower.rows(None, 3)
        assert torch.equal(prompt, tower.encode(["bad"] * 3))
        assert torch.equal(negative, tower.encode(["cafe"] * 3))
        prompt, negative = tower.rows([Text("a b"), Text("", "c"), Text("a b", "d")], 3)
        assert torch.equal(prompt[0], prompt[2])
        assert torch.equal(prompt[:2], torch.cat([tower.encode(["a b"]), tower.encode([""])]))
        assert torch.equal(negative, torch.cat([tower.encode([word]) for word in ("", "c", "d")]))
        assert not torch.equal(prompt[0], prompt[1])

    def test_every_prompt_is_encoded_once(self, tower: TextTower) -> None:
        counted: list[int] = []
        tower._net.register_forward_pre_hook(lambda _net, args: counted.append(len(args[0])))
        tower.encode(["a", "b", "a"])
        tower.encode(["b", "bad"])
        assert counted == [2]

    def test_a_prompt_that_is_too_long_is_named(self, tower: TextTower) -> None:
        with pytest.raises(UserError, match=r"16 tokens long; the text encoder reads 12.*'a b c d"):
            tower.encode(["a", "a b c d e f g a b c d e f g"])
