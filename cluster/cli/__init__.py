"""The sub-commands of ``boostlu``: one file each."""
