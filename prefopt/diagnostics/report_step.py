"""What a whole step does to a pair, as a table of the report."""

from typing import Any

from prefopt.diagnostics.report_page import Html, joined, paragraph, percent, table, tag


def step_table(step: dict[str, Any] | None) -> Html:
    """Changes by a pair's own group and by all others; nothing where they are not known."""
    if step is None:
        return joined([])
    num_groups, num_pairs = step["groups_per_step"], step["num_pairs"]
    rows = {
        "its own group": step["own"],
        "each other group, on average": step["each_other"],
        f"all {num_groups:,} groups of a step": step["whole"],
    }
    return joined(
        [
            tag("h3", f"What a step of {num_groups:,} groups does to a pair (n = {num_pairs:,})"),
            table(
                ["by", "chosen", "rejected"],
                [[by, row["chosen"], row["rejected"]] for by, row in rows.items()],
            ),
            paragraph(
                "Mean first-order changes of log-probs in nats, per unit of learning rate. The "
                f"whole step lowers the chosen response of {percent(step['share_chosen_falls'])} "
                f"of the pairs and both of {percent(step['share_both_fall'])}; their own group "
                f"alone would lower it in {percent(step['share_chosen_falls_by_its_own'])}."
            ),
        ]
    )
