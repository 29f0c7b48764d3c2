"""From finished runs to the report: results, studies, findings, figures, text, theory."""
