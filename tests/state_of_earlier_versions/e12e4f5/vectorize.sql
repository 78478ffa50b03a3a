--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: vectorize_callbacks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.vectorize_callbacks (
    task_id text NOT NULL COLLATE pg_catalog."C",
    topic text NOT NULL COLLATE pg_catalog."C",
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    url text NOT NULL COLLATE pg_catalog."C",
    body text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    attempts integer NOT NULL,
    due_us bigint NOT NULL,
    finished_us bigint,
    error text COLLATE pg_catalog."C"
);


--
-- Name: vectorize_findings; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.vectorize_findings (
    owner text NOT NULL COLLATE pg_catalog."C",
    check_name text NOT NULL COLLATE pg_catalog."C",
    collection text NOT NULL COLLATE pg_catalog."C",
    subject text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: vectorize_generations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.vectorize_generations (
    store text NOT NULL COLLATE pg_catalog."C",
    collection text NOT NULL COLLATE pg_catalog."C",
    physical text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    dimension integer NOT NULL,
    fingerprint text NOT NULL COLLATE pg_catalog."C",
    chunk_tokens integer NOT NULL,
    overlap_tokens integer NOT NULL,
    cut text NOT NULL COLLATE pg_catalog."C",
    created text NOT NULL COLLATE pg_catalog."C",
    changed text NOT NULL COLLATE pg_catalog."C",
    keep_until text COLLATE pg_catalog."C"
);


--
-- Name: vectorize_message_attempts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.vectorize_message_attempts (
    owner text NOT NULL COLLATE pg_catalog."C",
    topic text NOT NULL COLLATE pg_catalog."C",
    partition integer NOT NULL,
    kind text NOT NULL COLLATE pg_catalog."C",
    first_offset bigint NOT NULL,
    end_offset bigint NOT NULL,
    alone boolean NOT NULL,
    timestamp_ms bigint NOT NULL,
    stage text NOT NULL COLLATE pg_catalog."C",
    run_id text NOT NULL COLLATE pg_catalog."C",
    noted_us bigint NOT NULL,
    died boolean NOT NULL,
    proven boolean NOT NULL,
    error text COLLATE pg_catalog."C"
);


--
-- Name: vectorize_requests; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.vectorize_requests (
    request_id text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    modality text NOT NULL COLLATE pg_catalog."C",
    collection text COLLATE pg_catalog."C",
    submitted_us bigint NOT NULL,
    started_us bigint,
    finished_us bigint,
    run_id text COLLATE pg_catalog."C",
    topic text NOT NULL COLLATE pg_catalog."C",
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    timestamp_ms bigint NOT NULL,
    items bigint NOT NULL,
    vectors bigint NOT NULL,
    tokens bigint NOT NULL,
    error_class text COLLATE pg_catalog."C",
    error_message text COLLATE pg_catalog."C"
);


--
-- Name: vectorize_schema_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.vectorize_schema_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: vectorize_unfinished_writes; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.vectorize_unfinished_writes (
    physical text NOT NULL COLLATE pg_catalog."C",
    writer text NOT NULL COLLATE pg_catalog."C",
    id text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: vectorize_versions; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.vectorize_versions (
    collection text NOT NULL COLLATE pg_catalog."C",
    source_id text NOT NULL COLLATE pg_catalog."C",
    timestamp_ms bigint NOT NULL,
    topic text NOT NULL COLLATE pg_catalog."C",
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    deleted boolean NOT NULL
);


--
-- Data for Name: vectorize_callbacks; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.vectorize_callbacks VALUES ('request-2', 'vectorize.text', 0, 2, 'https://example.org/hook', '{"task_id":"request-2","status":"completed","collection":"texts","vector_count":2,"error":null,"run_id":"run","timestamp":"2026-11-01T12:00:00+00:00"}', 'waiting', 0, 1796044742552147, NULL, NULL);


--
-- Data for Name: vectorize_findings; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.vectorize_findings VALUES ('corpus', 'canary_recall', 'texts', 'source-1');
INSERT INTO public.vectorize_findings VALUES ('corpus', 'canary_recall', 'texts', 'source-2');


--
-- Data for Name: vectorize_generations; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.vectorize_generations VALUES ('lancedb', 'texts', 'texts_0', 'kept', 'all-MiniLM-L6-v2', 384, 'fingerprint-0', 200, 20, 'cut', '2026-11-01T12:00:00+00:00', '2026-11-02T12:00:00+00:00', '2026-11-08T12:00:00+00:00');
INSERT INTO public.vectorize_generations VALUES ('lancedb', 'texts', 'texts_1', 'live', 'all-MiniLM-L6-v2', 384, 'fingerprint-1', 200, 20, 'cut', '2026-11-02T12:00:00+00:00', '2026-11-03T12:00:00+00:00', NULL);


--
-- Data for Name: vectorize_message_attempts; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.vectorize_message_attempts VALUES ('e98b4d1dce8941f6be4c28529d067584', 'vectorize.text', 0, 'drain', 5, 6, true, 1793534400005, 'encoding', 'run-that-dies', 1796044743180924, false, true, NULL);


--
-- Data for Name: vectorize_requests; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.vectorize_requests VALUES ('request-0', 'pending', 'text', 'texts', 1793534400000000, 1793534401000000, NULL, 'run', 'vectorize.text', 0, 0, 1793534400000, 1, 0, 7, NULL, NULL);
INSERT INTO public.vectorize_requests VALUES ('request-1', 'processing', 'text', 'texts', 1793534401000000, 1793534402000000, NULL, 'run', 'vectorize.text', 0, 1, 1793534400001, 1, 1, 7, NULL, NULL);
INSERT INTO public.vectorize_requests VALUES ('request-2', 'completed', 'text', 'texts', 1793534402000000, 1793534403000000, 1793534404000000, 'run', 'vectorize.text', 0, 2, 1793534400002, 1, 2, 7, NULL, NULL);
INSERT INTO public.vectorize_requests VALUES ('request-3', 'failed', 'text', 'texts', 1793534403000000, 1793534404000000, 1793534405000000, 'run', 'vectorize.text', 0, 3, 1793534400003, 1, 3, 7, 'ItemError', 'größer als erlaubt');
INSERT INTO public.vectorize_requests VALUES ('request-4', 'cancelled', 'text', 'texts', 1793534404000000, 1793534405000000, 1793534406000000, 'run', 'vectorize.text', 0, 4, 1793534400004, 1, 4, 7, NULL, NULL);


--
-- Data for Name: vectorize_schema_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.vectorize_schema_version VALUES ('0001');


--
-- Data for Name: vectorize_unfinished_writes; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.vectorize_unfinished_writes VALUES ('texts_1', 'files', 'row-1');
INSERT INTO public.vectorize_unfinished_writes VALUES ('texts_1', 'files', 'row-2');


--
-- Data for Name: vectorize_versions; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.vectorize_versions VALUES ('texts', 'source-1', 1793534400001, 'vectorize.text', 0, 1, false);
INSERT INTO public.vectorize_versions VALUES ('texts', 'source-2', 1793534400002, 'vectorize.text', 0, 2, true);
INSERT INTO public.vectorize_versions VALUES ('*', 'source-3', 1793534400003, 'vectorize.text', 0, 3, true);


--
-- Name: vectorize_callbacks vectorize_callbacks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.vectorize_callbacks
    ADD CONSTRAINT vectorize_callbacks_pkey PRIMARY KEY (task_id, topic, partition, "offset");


--
-- Name: vectorize_findings vectorize_findings_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.vectorize_findings
    ADD CONSTRAINT vectorize_findings_pkey PRIMARY KEY (owner, check_name, collection, subject);


--
-- Name: vectorize_generations vectorize_generations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.vectorize_generations
    ADD CONSTRAINT vectorize_generations_pkey PRIMARY KEY (store, collection, physical);


--
-- Name: vectorize_message_attempts vectorize_message_attempts_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.vectorize_message_attempts
    ADD CONSTRAINT vectorize_message_attempts_pkey PRIMARY KEY (owner, topic, partition);


--
-- Name: vectorize_requests vectorize_requests_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.vectorize_requests
    ADD CONSTRAINT vectorize_requests_pkey PRIMARY KEY (request_id);


--
-- Name: vectorize_schema_version vectorize_schema_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.vectorize_schema_version
    ADD CONSTRAINT vectorize_schema_version_pkc PRIMARY KEY (version_num);


--
-- Name: vectorize_unfinished_writes vectorize_unfinished_writes_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.vectorize_unfinished_writes
    ADD CONSTRAINT vectorize_unfinished_writes_pkey PRIMARY KEY (physical, writer, id);


--
-- Name: vectorize_versions vectorize_versions_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.vectorize_versions
    ADD CONSTRAINT vectorize_versions_pkey PRIMARY KEY (collection, source_id);


--
-- Name: vectorize_callbacks_by_state; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX vectorize_callbacks_by_state ON public.vectorize_callbacks USING btree (state, due_us);


--
-- Name: vectorize_requests_by_state; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX vectorize_requests_by_state ON public.vectorize_requests USING btree (state, submitted_us, request_id);


--
-- PostgreSQL database dump complete
--


