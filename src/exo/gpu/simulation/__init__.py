"""Clusters that exist on paper only: events in virtual time drive the deciding code itself."""
