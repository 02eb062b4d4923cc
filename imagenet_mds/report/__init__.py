"""Pictures and pages for people: contact sheets, plots."""
