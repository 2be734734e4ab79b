"""The identity of a report: two reports with the same `ce_id` are the same report (contract.md section 6)."""

from hashlib import blake2b

from ingest.contract.report import Report

REPORT_ID_BYTES = 12


def report_id(report: Report) -> str:
    """The `ce_id` of a report: 24 lower-case hex digits of BLAKE2b over its identifying fields.

    The separator 0x1F cannot occur in a field: control characters make a report unusable.
    """
    text = (
        f"{report.message_id}\x1f{report.total or 1}\x1f{report.sequence}\x1f{report.status}"
        f"\x1f{report.source}\x1f{report.update_time}\x1f{report.org_code}"
    )
    return blake2b(text.encode(), digest_size=REPORT_ID_BYTES).hexdigest()
