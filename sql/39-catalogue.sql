CREATE FUNCTION ingest.cost_usd(model text, tokens bigint) RETURNS numeric
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'cost_usd_wrapper';
COMMENT ON FUNCTION ingest.cost_usd(text, bigint) IS 'What so many input tokens cost with the model, in US dollars, by the catalogue; 0 for local models, null when the price is not known';

CREATE FUNCTION ingest.count_tokens(input text, model text) RETURNS int
LANGUAGE c STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'count_tokens_wrapper';
COMMENT ON FUNCTION ingest.count_tokens(text, text) IS 'How many tokens the model''s own tokenizer makes of the text, without the markers that a model adds to each input';
