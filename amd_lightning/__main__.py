"""`python -m amd_lightning`: the commands, a line each. Each is a module of its own and explains itself."""

import sys

COMMANDS = {
    "run": "a distillation, or a sweep of them",
    "data": "what a run's models would see",
    "plan": "what a run takes, before it is started",
    "compare": "several runs as one table and one report",
    "evaluate": "any model, scored as a run's student",
    "judge": "a language model's opinion of responses",
    "push": "a run's student onto the Hugging Face hub",
    "dashboard": "a workspace and a report on W&B",
}
"""Module -> what it does."""


def main() -> None:
    """Print them; a command that was written as an argument is shown how it is written."""
    if (asked := sys.argv[1:]) and asked[0] not in ("-h", "--help"):
        name = asked[0] if asked[0] in COMMANDS else "run"
        sys.exit(
            f"error: no command stands behind a space: python -m amd_lightning.{name} (python -m "
            "amd_lightning lists all)"
        )
    width = max(map(len, COMMANDS))
    lines = [f"  python -m amd_lightning.{name:<{width}}  {what}" for name, what in COMMANDS.items()]
    sys.stdout.write("\n".join(["Commands; each with --help:", "", *lines, ""]))


if __name__ == "__main__":
    main()
