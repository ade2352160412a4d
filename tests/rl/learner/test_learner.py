"""The learner's numbers do not depend on ranks, rows, micro-batches or restarts."""

import dataclasses
import math
import random
import shutil
import socket

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sandboxrl.data.errors import InputError
from sandboxrl.envs.trajectory import StopReason, Tokens, Trajectory
from sandboxrl.rl.grpo import LossConfig
from sandboxrl.rl.learner.batch import build_batch
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.learner.learner import Learner, NotFinite, export
from sandboxrl.rl.learner.weights import free_port, full
from tests.rl.learner.ranks import on_ranks
from tests.rl.learner.test_model import tiny_mixture
from tests.rl.tiny import VOCABULARY, tiny_model

FAST = LearnerConfig(device="cpu", learning_rate=1e-3, max_tokens_per_row=128, logprob_chunk=32)
PAPER = LossConfig(aggregation="sequence_mean_token_sum")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    path = tmp_path_factory.mktemp("tied")
    tiny_model().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixture")
    tiny_mixture().save_pretrained(path)
    return str(path)


def make_groups(model, seed=0, sizes=(4, 4, 3), exact=True):
    """Random trajectories of several turns whose log-probabilities are the model's own (or 0.3 off, not `exact`)."""
    rng = random.Random(seed)
    policy = AutoModelForCausalLM.from_pretrained(model)
    groups = []
    for size in sizes:
        group = []
        for member in range(size):
            mask = [0] * rng.randint(3, 12)
            for _ in range(rng.randint(1, 3)):
                mask += [1] * rng.randint(2, 12) + [0] * rng.randint(0, 6)
            ids = [rng.randrange(3, VOCABULARY) for _ in mask]
            with torch.no_grad():
                scores = F.log_softmax(policy(torch.tensor([ids[:-1]])).logits[0], -1)
            logprobs = [0.0] + scores[range(len(ids) - 1), ids[1:]].tolist()
            noise = 0.0 if exact else 0.3
            tokens = Tokens(
                ids,
                mask,
                [(x + rng.uniform(-noise, noise)) * m for x, m in zip(logprobs, mask, strict=True)],
                [0 if m else -1 for m in mask],
            )
            reward = float(member % 2) if size != 3 else 0.5
            group.append(Trajectory("t", "s", "sandbox", StopReason.FINISHED, (), reward=reward, tokens=tokens))
        groups.append(group)
    return groups


@pytest.fixture
def learner(tied):
    """Makes learners of world size 1 in this process, one after the other."""
    opened = []

    def make(config=FAST, loss=None, model=None, temperature=1.0):
        for core in opened:
            core.close()
        opened[:] = [Learner(0, config)]
        opened[0].setup(f"127.0.0.1:{free_port()}", model or tied, loss or LossConfig(), temperature)
        return opened[0]

    yield make
    for core in opened:
        core.close()


def batch_for(core, groups, version=0):
    return build_batch(groups, core.loss, core.config, version).of_rank(core.rank)


def state_of(core):
    return {name: full(tensor).clone() for name, tensor in core.weights()}


def train(core, groups, num_updates=3):
    """The stats of some updates on the same groups, and a checksum of the weights after them."""
    stats = [core.update(batch_for(core, groups)) for _ in range(num_updates)]
    return stats, sum(tensor.double().abs().sum().item() for tensor in state_of(core).values())


def test_it_keeps_what_it_thought_of_every_trained_token_before_the_update(learner, tied):
    core = learner(dataclasses.replace(FAST, minibatches=2), LossConfig(old_logprobs="learner"))
    groups = make_groups(tied, exact=False)
    core.update(batch_for(core, groups))
    flat = [one for group in groups for one in group]
    moving = [place for place, one in enumerate(flat) if one.reward != 0.5]
    assert sorted(core.learned()) == moving
    exact = [one for group in make_groups(tied) for one in group]  # the same tokens with the model's own
    for place, logprobs in core.learned().items():
        own = [x for x, m in zip(exact[place].tokens.logprobs, flat[place].tokens.mask, strict=True) if m]
        np.testing.assert_allclose(logprobs, own, atol=1e-4)


def reference_gradient(model, groups, weights_of, temperature=1.0):
    """Minus the policy gradient, one trajectory at a time, with full logits and the plain model."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    loss = 0.0
    for trajectory, advantage, weight in weights_of(groups):
        ids = torch.tensor(trajectory.tokens.ids)
        logprobs = F.log_softmax(policy(ids[None, :-1]).logits[0] / temperature, -1)[range(len(ids) - 1), ids[1:]]
        mask = torch.tensor(trajectory.tokens.mask[1:])
        loss = loss - weight * advantage * (logprobs * mask).sum()
    loss.backward()
    return {name: parameter.grad for name, parameter in policy.named_parameters()}


def leave_one_out(groups):
    """(trajectory, advantage, 1 / B) by the definition."""
    count = sum(len(group) for group in groups)
    for group in groups:
        for one in group:
            others = [other.reward for other in group if other is not one]
            yield one, one.reward - sum(others) / len(others), 1 / count


# --- one rank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_first_gradient_is_the_plain_policy_gradient(tied, learner, checkpointing, temperature):
    """I10, and I3 and I1 with it: against separate sequences, full logits, no chunks, no rows, no clipping."""
    groups = make_groups(tied)
    core = learner(dataclasses.replace(FAST, gradient_checkpointing=checkpointing), PAPER, temperature=temperature)
    for row in batch_for(core, groups)[0]:
        core.backward(row, None, compare=False)
    expected = reference_gradient(tied, groups, leave_one_out, temperature)
    for name, parameter in core.policy.language_model.named_parameters():
        torch.testing.assert_close(full(parameter.grad), expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("aggregation", ["sequence_mean_token_sum", "token_mean", "prompt_mean"])
@pytest.mark.parametrize("max_tokens", [16, 64, 4096])
def test_rows_and_micro_batches_change_no_number(tied, learner, aggregation, max_tokens):
    """I1 and I3: one long row, several rows, one trajectory per row."""
    loss, groups = LossConfig(aggregation=aggregation), make_groups(tied)
    expected, weights = train(learner(dataclasses.replace(FAST, max_tokens_per_row=100_000), loss), groups)
    found, other = train(learner(dataclasses.replace(FAST, max_tokens_per_row=max_tokens), loss), groups)
    assert [s["loss"] for s in found] == pytest.approx([s["loss"] for s in expected], abs=1e-5)
    assert [s["grad_norm"] for s in found] == pytest.approx([s["grad_norm"] for s in expected], rel=1e-4)
    assert other == pytest.approx(weights, rel=1e-6)


def test_the_order_of_groups_and_trajectories_changes_no_number(tied, learner):
    """I4."""
    groups = make_groups(tied)
    mixed = [group[::-1] for group in groups[::-1]]
    expected, found = train(learner(), groups, 2)[0], train(learner(), mixed, 2)[0]
    for key in ("loss", "grad_norm"):
        assert [s[key] for s in found] == pytest.approx([s[key] for s in expected], rel=1e-4)


def test_skipped_groups_leave_the_gradient_identical(tied, learner):
    """I8: the group without signal has no row; with rows for it at advantage 0 nothing changes."""
    groups = make_groups(tied)
    core = learner()
    steps = batch_for(core, groups)
    skipped = core.update(steps)
    lone = build_batch([groups[0]], core.loss, core.config, 0).of_rank(0)[0]
    silent = [dataclasses.replace(row, advantages=0 * row.advantages) for row in lone]
    padded = learner().update([[*steps[0], *silent]])
    assert padded["loss"] == pytest.approx(skipped["loss"], abs=1e-7)
    assert padded["grad_norm"] == pytest.approx(skipped["grad_norm"], rel=1e-6)


def test_environment_tokens_are_context_and_never_targets(tied, learner):
    """I7: what stands after the last sampled token changes nothing, and neither do log-probs at environment tokens."""
    groups = make_groups(tied)
    core = learner()
    expected = core.update(batch_for(core, groups))

    def garbled(one):
        tokens = one.tokens
        last = max(i for i, m in enumerate(tokens.mask) if m)
        return dataclasses.replace(
            one,
            tokens=dataclasses.replace(
                tokens,
                ids=[7 if i > last else token for i, token in enumerate(tokens.ids)],
                logprobs=[x if m else -9.0 for x, m in zip(tokens.logprobs, tokens.mask, strict=True)],
            ),
        )

    other = learner()
    found = other.update(batch_for(other, [[garbled(one) for one in group] for group in groups]))
    assert found == pytest.approx(expected, abs=1e-6)


def test_one_step_on_policy_needs_no_old_log_probabilities(tied, learner):
    """With one minibatch, `learner` and `engine` give the same update when the engine's log-probs are exact."""
    groups = make_groups(tied)
    by_learner = learner().update(batch_for(learner(), groups))
    core = learner(loss=LossConfig(old_logprobs="engine"))
    by_engine = core.update(batch_for(core, groups))
    assert by_engine["loss"] == pytest.approx(by_learner["loss"], abs=1e-5)
    assert by_engine["grad_norm"] == pytest.approx(by_learner["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("old", ["learner", "engine"])
def test_minibatches_are_optimizer_steps_with_ratios_against_the_start(tied, learner, old):
    groups = make_groups(tied)
    core = learner(dataclasses.replace(FAST, minibatches=2, learning_rate=1e-2), LossConfig(old_logprobs=old))
    stats = core.update(batch_for(core, groups))
    assert stats["optimizer_steps"] == core.num_updates == 2
    assert stats["mismatch/logprob_max"] < 1e-4, "compared before the first step, not after it"
    assert stats["clip_fraction"] > 0, "at this learning rate the second step is far off the sampled policy"


def test_mismatch_is_what_the_engine_is_off_and_leaves_out_stale_tokens(tied, learner):
    groups = make_groups(tied)
    assert learner().update(batch_for(learner(), groups))["mismatch/logprob_max"] < 1e-4
    first = groups[0][0].tokens
    where = first.mask.tolist().index(1)
    off = [x + 0.25 * (i == where) for i, x in enumerate(first.logprobs)]
    groups[0][0] = dataclasses.replace(groups[0][0], tokens=dataclasses.replace(first, logprobs=off))
    core = learner()
    stats = core.update(batch_for(core, groups))
    assert stats["mismatch/logprob_max"] == pytest.approx(0.25, abs=1e-4)
    assert stats["mismatch/logprob_mean"] == pytest.approx(0.25 / stats["mismatch/tokens"], abs=1e-4)
    assert stats["mismatch/kl"] == pytest.approx((math.exp(-0.25) + 0.25 - 1) / stats["mismatch/tokens"], rel=1e-2)
    core = learner()
    assert core.update(batch_for(core, groups, version=1))["mismatch/tokens"] == 0


def test_a_probe_is_compared_even_in_a_step_that_has_nothing_to_learn(tied, learner):
    tokens = make_groups(tied)[0][0].tokens
    off = dataclasses.replace(
        tokens, logprobs=[x - 0.25 * m for x, m in zip(tokens.logprobs, tokens.mask, strict=True)]
    )
    core = learner()
    before = state_of(core)
    batch = build_batch([], core.loss, core.config, version=0, probes=[tokens, off])
    stats = core.update(batch.of_rank(0), batch.probe)
    assert stats["mismatch/tokens"] == 2 * sum(tokens.mask)
    assert stats["mismatch/logprob_max"] == pytest.approx(0.25, abs=1e-4)
    assert stats["mismatch/logprob_mean"] == pytest.approx(0.125, abs=1e-4)
    assert stats["optimizer_steps"] == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(core).items())
    core.policy.language_model.lm_head.weight.data.mul_(math.nan)
    with pytest.raises(NotFinite, match="probe"):
        core.update([], batch.probe)


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(importance="token"),
        LossConfig(importance="sequence"),
        LossConfig(importance="icepop"),
        LossConfig(policy_loss="gspo"),
        LossConfig(policy_loss="cispo"),
        LossConfig(policy_loss="dppo", old_logprobs="engine"),
        LossConfig(aggregation="sequence_mean_token_sum_norm", length_norm=64, advantage="group_std"),
        LossConfig(overlong="mask", advantage="length_weighted", dual_clip=3.0),
    ],
    ids=lambda loss: f"{loss.policy_loss}-{loss.importance}-{loss.advantage}",
)
def test_every_loss_is_indifferent_to_rows(tied, learner, loss):
    groups = make_groups(tied, exact=False)
    groups[0][1] = dataclasses.replace(groups[0][1], stop=StopReason.MAX_TOKENS, reward=0.0)
    config = dataclasses.replace(FAST, minibatches=2)
    expected, weights = train(learner(dataclasses.replace(config, max_tokens_per_row=4096), loss), groups, 2)
    found, other = train(learner(dataclasses.replace(config, max_tokens_per_row=32), loss), groups, 2)
    for key in ("loss", "grad_norm", "clip_fraction", "mismatch/kl"):
        assert [s[key] for s in found] == pytest.approx([s[key] for s in expected], rel=1e-3, abs=1e-5)
    assert other == pytest.approx(weights, rel=1e-5)


def test_nothing_to_learn_changes_nothing(learner):
    core = learner()
    before = state_of(core)
    stats = core.update([])
    assert stats["optimizer_steps"] == stats["loss"] == stats["grad_norm"] == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(core).items())


def test_clipping_bounds_the_step_and_the_reported_norm_is_before_it(tied, learner):
    groups = make_groups(tied)
    free = learner(dataclasses.replace(FAST, max_grad_norm=1e9)).update(batch_for(learner(), groups))
    core = learner(dataclasses.replace(FAST, max_grad_norm=1e-3))
    steps = batch_for(core, groups)
    assert core.update(steps)["grad_norm"] == pytest.approx(free["grad_norm"], rel=1e-5)
    assert free["grad_norm"] > 1e-3
    moments = [full(core.optimizer.state[p]["exp_avg"]) for p in core.policy.parameters()]
    applied = math.sqrt(sum((m / (1 - core.config.beta1)).square().sum().item() for m in moments))
    assert applied == pytest.approx(1e-3, rel=1e-3)


def test_warm_up_then_constant(tied, learner):
    core = learner(dataclasses.replace(FAST, warmup_steps=4))
    groups = make_groups(tied)
    rates = []
    for _ in range(6):
        core.update(batch_for(core, groups))
        rates.append(core.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_a_step_that_is_not_finite_is_skipped_and_counted_and_keeps_the_weights(tied, learner):
    core = learner()
    steps = batch_for(core, make_groups(tied))
    before = state_of(core)
    broken = dataclasses.replace(steps[0][0], weights=np.full_like(steps[0][0].weights, np.inf))
    stats = core.update([[broken]])
    assert (stats["steps_skipped"], stats["optimizer_steps"]) == (1, 0) and "loss" not in stats
    assert all(math.isfinite(value) for value in stats.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(core).items())
    stats = core.update([*steps, [broken]])
    assert (stats["steps_skipped"], stats["optimizer_steps"]) == (1, len(steps)) and math.isfinite(stats["loss"])
    assert core.num_updates == len(steps)


def test_bfloat16_keeps_float32_weights_and_stays_close(tied, learner):
    groups = make_groups(tied)
    exact = learner().update(batch_for(learner(), groups))
    core = learner(dataclasses.replace(FAST, dtype="bfloat16"))
    rough = core.update(batch_for(core, groups))
    assert {tensor.dtype for tensor in state_of(core).values()} == {torch.float32}
    assert rough["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.05)
    assert 0 < rough["mismatch/logprob_mean"] < 0.2


def test_a_gpu_that_is_not_there_is_one_clear_line(learner):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="sees no GPU"):
        Learner(0, dataclasses.replace(FAST, device="cuda")).setup("", "", LossConfig())


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_resumed_equals_uninterrupted_digit_for_digit(tied, learner, tmp_path):
    groups = make_groups(tied)
    config = dataclasses.replace(FAST, warmup_steps=5)
    core = learner(config)
    steps = batch_for(core, groups)
    core.update(steps)
    core.update(steps)
    core.save(str(tmp_path))
    expected = [core.update(steps), core.update(steps)]
    weights = state_of(core)
    resumed = learner(config)
    resumed.load(str(tmp_path))
    assert [resumed.update(steps), resumed.update(steps)] == expected
    assert all(torch.equal(weights[name], tensor) for name, tensor in state_of(resumed).items())


@pytest.mark.parametrize("kind", ["tied", "mixture"])
def test_an_export_is_a_folder_that_transformers_loads_with_the_same_weights(kind, request, learner, tmp_path):
    model = request.getfixturevalue(kind)
    core = learner(model=model)
    core.update(batch_for(core, make_groups(model)))
    core.save(str(tmp_path / "c"))
    export(tmp_path / "c", model, tmp_path / "hf")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    for name, tensor in reloaded.named_parameters():
        assert torch.equal(tensor, full(core.policy.language_model.get_parameter(name)))
    assert "packed" not in (tmp_path / "hf" / "config.json").read_text()


def test_an_incomplete_checkpoint_is_not_exported(tied, tmp_path):
    (tmp_path / "learner").mkdir()
    with pytest.raises(InputError, match="no complete checkpoint"):
        export(tmp_path, tied, tmp_path / "out")


# --- two ranks --------------------------------------------------------------------------------------------------------


def work_train(core, groups, num_updates):
    return train(core, groups, num_updates)


def work_resume(core, folder, groups):
    core.load(folder)
    return train(core, groups, 1)


def work_save(core, folder, groups):
    train(core, groups, 2)
    core.save(folder)
    return train(core, groups, 1)


def work_broken(core, groups):
    steps = batch_for(core, groups)
    if core.rank == 1:
        steps = [[dataclasses.replace(row, engine=row.engine * np.nan) for row in rows] for rows in steps]
    return core.update(steps)["steps_skipped"], core.num_updates


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["tied", "mixture"])
@pytest.mark.parametrize(
    "sizes, minibatches, max_tokens", [((4, 4, 3), 2, 64), ((2,), 2, 4096)], ids=["many rows", "one rank idle"]
)
def test_two_ranks_give_the_numbers_of_one(kind, sizes, minibatches, max_tokens, request, learner):
    """I2, with log-probabilities of the start taken for the second step. Two trajectories in two steps leave one rank
    without a row each time."""
    model = request.getfixturevalue(kind)
    groups = make_groups(model, sizes=sizes)
    config = dataclasses.replace(FAST, minibatches=minibatches, max_tokens_per_row=max_tokens)
    expected, weights = train(learner(config, model=model), groups)
    config = dataclasses.replace(config, world_size=2)
    first, second = on_ranks(work_train, model, config, args=(groups, 3))
    assert first == second
    for key in ("loss", "mismatch/kl"):
        assert [s[key] for s in first[0]] == pytest.approx([s[key] for s in expected], abs=1e-5)
    assert [s["grad_norm"] for s in first[0]] == pytest.approx([s["grad_norm"] for s in expected], rel=1e-4)
    assert first[1] == pytest.approx(weights, rel=1e-5)


@pytest.mark.heavy
def test_a_folder_that_its_config_does_not_describe_is_refused_by_every_rank(tied, tmp_path):
    """Rank 0 reads the folder, the others build what its config.json says; broadcasts would pair other tensors."""
    folder = shutil.copytree(tied, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(AssertionError, match="other tensors than its config.json describes"):
        on_ranks(work_train, str(folder), dataclasses.replace(FAST, world_size=2), args=((), 1))


@pytest.mark.heavy
def test_a_checkpoint_of_one_rank_goes_on_with_two_and_back(tied, learner, tmp_path):
    groups = make_groups(tied)
    core = learner()
    train(core, groups, 2)
    core.save(str(tmp_path / "one"))
    expected = train(core, groups, 1)
    config = dataclasses.replace(FAST, world_size=2)
    found, _ = on_ranks(work_resume, tied, config, args=(str(tmp_path / "one"), groups))
    assert found[0][0]["loss"] == pytest.approx(expected[0][0]["loss"], abs=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-6)

    after_two, _ = on_ranks(work_save, tied, config, args=(str(tmp_path / "two"), groups))
    back = learner()
    back.load(str(tmp_path / "two"))
    found = train(back, groups, 1)
    assert found[0][0]["grad_norm"] == pytest.approx(after_two[0][0]["grad_norm"], rel=1e-4)
    assert found[1] == pytest.approx(after_two[1], rel=1e-6)


@pytest.mark.heavy
def test_a_fault_on_one_rank_ends_all_of_them(tied):
    config = dataclasses.replace(FAST, world_size=2)
    loss = LossConfig(old_logprobs="engine")
    told = on_ranks(work_broken, tied, config, loss, (make_groups(tied),))
    assert told[0] == told[1] and told[0][0] > 0 and told[0][1] == 0


def work_name(core):
    return core.rank


@pytest.mark.heavy
def test_ranks_wait_for_the_one_that_reads_the_model_longer_than_for_any_other(tied):
    """No collective's time runs before the model is there."""
    config = dataclasses.replace(FAST, world_size=2, timeout_s=5)
    assert on_ranks(work_name, tied, config, late_s=7) == [0, 1]


def test_the_address_is_taken_as_soon_as_it_is_known(tied):
    """Whoever else picks a port before the ranks meet gets another one."""
    core = Learner(0, FAST)
    host, _, port = core.address().rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        pass
    core.setup(f"{host}:{port}", tied, LossConfig())
    core.close()


def test_a_save_that_goes_on_beside_training_holds_the_weights_it_began_with(tied, learner, tmp_path):
    groups = make_groups(tied)
    core = learner()
    train(core, groups, 1)
    before = state_of(core)
    core.begin_save(str(tmp_path / "c"))
    train(core, groups, 2)
    core.finish_save()
    assert core.is_saved()
    assert not all(torch.equal(now, before[name]) for name, now in state_of(core).items())
    back = learner()
    back.load(str(tmp_path / "c"))
    assert back.num_updates == 1
    assert all(torch.equal(now, before[name]) for name, now in state_of(back).items())


def test_what_goes_wrong_while_writing_is_told(tied, learner, tmp_path):
    (tmp_path / "learner").write_text("a file where the folder should be")
    core = learner()
    with pytest.raises(OSError, match="cannot be saved: FileExistsError"):
        core.save(str(tmp_path))
    core.save(str(tmp_path / "else"))


def test_offloaded_state_gives_the_same_step(tied, learner):
    """On a CPU it is where it always is; the step is made by the kernel that a GPU's host uses."""
    groups = make_groups(tied)
    expected, weights = train(learner(), groups)
    found, other = train(learner(dataclasses.replace(FAST, offload=True)), groups)
    assert [s["grad_norm"] for s in found] == pytest.approx([s["grad_norm"] for s in expected], rel=1e-4)
    assert other == pytest.approx(weights, rel=1e-6)
