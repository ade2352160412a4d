"""What answers: a policy turns messages into replies and calls, and keeps the exact tokens where it has them."""

from sandboxrl.envs.policy.chat import ChatFormat, TokenPolicy, load_tokenizer
from sandboxrl.envs.policy.protocol import Conversation, Engine, EngineLost, Policy, Reply, Sampled, Sampling

__all__ = [
    "ChatFormat",
    "Conversation",
    "Engine",
    "EngineLost",
    "Policy",
    "Reply",
    "Sampled",
    "Sampling",
    "TokenPolicy",
    "load_tokenizer",
]
