"""Reports as pages: one HTML file that loads nothing, for a screen, for paper, by day and by night."""
