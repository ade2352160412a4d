"""An advantage and a policy loss of your own.

loss: {advantage: learning.py:ranked, policy_loss: learning.py:reinforce}
"""

import torch


def ranked(rewards, lengths):
    """Ranks instead of rewards: the best of a group gets 1, the worst -1, equal rewards the same."""
    order = sorted(set(rewards))
    return [2 * order.index(reward) / (len(order) - 1) - 1 for reward in rewards]


def reinforce(logprobs, old, advantages, trajectory, config):
    """-A log p for every token, without a bound on the ratio, so that no token is held."""
    return -advantages * logprobs, torch.zeros_like(logprobs, dtype=torch.bool)
