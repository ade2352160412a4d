"""`sudo python -m sandboxrl.envs.sandbox.network`: the packet filter, for an ordinary user of Docker."""

from sandboxrl.envs.sandbox.network.packet_filter import protect

if __name__ == "__main__":
    protect()
