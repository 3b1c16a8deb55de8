"""The tables of AlpacaEval and MT-Bench, from answers and judgments of any judge."""
