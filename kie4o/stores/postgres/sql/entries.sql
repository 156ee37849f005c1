-- What a store does with its entries. Each function is one transaction, and may be sent twice.
--
-- synchronous_commit is set inside the transaction: a SET clause of the function ends before the commit, and a
-- setting of the session does not survive a pooler.

-- The state of an entry as others see it: the intent of a process that is gone is unknown.
CREATE FUNCTION kie4o.state_of(stored text, held_by bigint) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN stored = 'intent' AND NOT kie4o.alive(held_by) THEN 'unknown' ELSE stored END
$$;

-- Make the intents of processes that are gone unknown.
CREATE FUNCTION kie4o.bury(of_account bytea) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    UPDATE kie4o.entry SET
        state = 'unknown', holder = NULL,
        submitted_at = coalesce(submitted_at, extract(epoch FROM clock_timestamp()))
    WHERE account = of_account AND state = 'intent' AND NOT kie4o.alive(holder);
END $$;

-- Insert an entry, or replace what is stored under its key.
CREATE FUNCTION kie4o.put(
    of_account bytea, new_key bytea, new_mark bytea, new_fingerprint bytea, new_state text, new_task_id text,
    new_submitted_at double precision, new_price text, new_body bytea, new_checksum bytea, new_holder bigint
) RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO kie4o.entry
        (account, key, mark, fingerprint, state, holder, task_id, submitted_at, price, body, checksum)
    VALUES (
        of_account, new_key, new_mark, new_fingerprint, new_state, new_holder, new_task_id, new_submitted_at,
        new_price, new_body, new_checksum
    )
    ON CONFLICT (account, key) DO UPDATE SET
        mark = excluded.mark, fingerprint = excluded.fingerprint, state = excluded.state,
        holder = excluded.holder, task_id = excluded.task_id, submitted_at = excluded.submitted_at,
        price = excluded.price, body = excluded.body, checksum = excluded.checksum
$$;

-- Hold a key for a process: with a new entry, or if what is stored is in one of the states that it takes.
-- Outcomes: held; stored (and not held); busy (in another's hands); lost (the lease of this process is).
CREATE FUNCTION kie4o.claim(
    me bigint, takes text[], of_account bytea, new_key bytea, new_mark bytea, new_fingerprint bytea,
    new_state text, new_task_id text, new_submitted_at double precision, new_price text, new_body bytea,
    new_checksum bytea
) RETURNS TABLE (outcome text, mark bytea, body bytea, checksum bytea, state text, submitted_at double precision)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    stored kie4o.entry;
    verdict text;
BEGIN
    LOOP  -- each statement sees what others have committed before it
        SELECT * INTO stored FROM kie4o.entry WHERE account = of_account AND key = new_key;
        IF NOT FOUND THEN
            IF NOT kie4o.alive(me) THEN
                RETURN QUERY SELECT 'lost', new_mark, new_body, new_checksum, new_state, new_submitted_at;
                RETURN;
            END IF;
            PERFORM set_config('synchronous_commit', 'on', true);
            INSERT INTO kie4o.entry
                (account, key, mark, fingerprint, state, holder, task_id, submitted_at, price, body, checksum)
            VALUES (
                of_account, new_key, new_mark, new_fingerprint, new_state, me, new_task_id, new_submitted_at,
                new_price, new_body, new_checksum
            )
            ON CONFLICT (account, key) DO NOTHING RETURNING * INTO stored;
            CONTINUE WHEN NOT FOUND;
            verdict := 'held';
        ELSIF stored.holder <> me AND kie4o.alive(stored.holder) THEN
            verdict := 'busy';
        ELSIF stored.holder <> me AND (stored.state = 'intent' OR kie4o.may_lack_intent(stored)) THEN
            PERFORM set_config('synchronous_commit', 'on', true);
            UPDATE kie4o.entry SET
                state = 'unknown', holder = NULL,
                submitted_at = coalesce(submitted_at, extract(epoch FROM clock_timestamp()))
            WHERE account = of_account AND key = new_key
                AND mark = stored.mark AND state = stored.state AND holder = stored.holder;
            CONTINUE;
        ELSIF stored.state <> ALL (takes)
            OR (stored.state <> 'planned' AND stored.fingerprint <> new_fingerprint) THEN
            verdict := 'stored';
        ELSIF stored.holder = me THEN
            verdict := 'held';
        ELSIF NOT kie4o.alive(me) THEN
            verdict := 'lost';
        ELSE
            PERFORM set_config('synchronous_commit', 'on', true);
            UPDATE kie4o.entry SET holder = me
            WHERE account = of_account AND key = new_key
                AND mark = stored.mark AND state = stored.state AND holder IS NOT DISTINCT FROM stored.holder;
            CONTINUE WHEN NOT FOUND;
            verdict := 'held';
        END IF;
        RETURN QUERY SELECT
            verdict, stored.mark, stored.body, stored.checksum, stored.state, stored.submitted_at;
        RETURN;
    END LOOP;
END $$;

-- Whether the intent of a planned entry may have been lost when a replica took over: its holder, which is gone,
-- is older than that, or was itself lost with it.
CREATE FUNCTION kie4o.may_lack_intent(stored kie4o.entry) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT stored.state = 'planned' AND NOT EXISTS (
        SELECT FROM kie4o.process, kie4o.server WHERE process.id = stored.holder AND started_at >= promoted_at
    )
$$;

-- Save what is now under a key that is held, and with it what was under the key before: both or neither. It is
-- written again when asked again, so that the commit waits for a replica as the first one did.
-- Outcomes: saved; taken (the key is not held, or has changed since); lost.
CREATE FUNCTION kie4o.begin_submit(
    mine bigint[], takes text[], seen bytea, is_new boolean, of_account bytea,
    new_key bytea, new_mark bytea, new_fingerprint bytea, new_state text, new_task_id text,
    new_submitted_at double precision, new_price text, new_body bytea, new_checksum bytea,
    old_key bytea, old_mark bytea, old_fingerprint bytea, old_state text, old_task_id text,
    old_submitted_at double precision, old_price text, old_body bytea, old_checksum bytea
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    stored kie4o.entry;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    IF NOT kie4o.alive(mine[1]) THEN
        RETURN 'lost';
    END IF;
    SELECT * INTO stored FROM kie4o.entry WHERE account = of_account AND key = new_key FOR UPDATE;
    IF NOT (
        CASE WHEN FOUND THEN
            stored.holder = ANY (mine) AND (
                (stored.mark = new_mark AND stored.state = new_state)
                OR (stored.mark IN (seen, new_mark) AND stored.state = ANY (takes))
            )
        ELSE is_new END
    ) IS TRUE THEN
        RETURN 'taken';
    END IF;
    IF old_key IS NOT NULL AND (stored.mark <> new_mark) IS NOT FALSE THEN
        PERFORM kie4o.put(
            of_account, old_key, old_mark, old_fingerprint, old_state, old_task_id, old_submitted_at, old_price,
            old_body, old_checksum, NULL
        );
    END IF;
    PERFORM kie4o.put(
        of_account, new_key, new_mark, new_fingerprint, new_state, new_task_id, new_submitted_at, new_price,
        new_body, new_checksum, mine[1]
    );
    DELETE FROM kie4o.entry WHERE account = of_account AND mark = new_mark AND key <> new_key;
    RETURN 'saved';
END $$;

-- Save an entry. What another process holds under the key stays in its hands; what this one holds does, if it
-- keeps the key and was not paid for. A statement whose connection was lost is sent again, and may be executed
-- after what followed it: it undoes nothing of that. `intent_at` is the time of the intent that it undoes.
-- Outcomes: saved, and whether the key is still held; taken (another ref has the key, which is not held);
-- duplicate (another entry has the task).
CREATE FUNCTION kie4o.save(
    me bigint, keeps boolean, intent_at double precision, of_account bytea, new_key bytea, new_mark bytea,
    new_fingerprint bytea, new_state text, new_task_id text, new_submitted_at double precision, new_price text,
    new_body bytea, new_checksum bytea
) RETURNS TABLE (outcome text, held boolean, owner_body bytea, owner_checksum bytea)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    stored kie4o.entry;
    owner kie4o.entry;
    new_holder bigint;
    ended CONSTANT text[] := ARRAY['succeeded', 'failed'];
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    PERFORM set_config('writer.process', me::text, true);  -- for `tell_of_end`
    IF new_state = 'submitted' THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(new_task_id, 0));  -- of two entries one gets the task
        SELECT * INTO owner FROM kie4o.entry
            WHERE account = of_account AND task_id = new_task_id AND mark <> new_mark LIMIT 1;
        IF FOUND THEN
            RETURN QUERY SELECT 'duplicate', false, owner.body, owner.checksum;
            RETURN;
        END IF;
    END IF;
    SELECT * INTO stored FROM kie4o.entry WHERE account = of_account AND key = new_key FOR UPDATE;
    IF FOUND AND stored.mark <> new_mark AND stored.holder IS DISTINCT FROM me THEN
        RETURN QUERY SELECT 'taken', false, NULL::bytea, NULL::bytea;
        RETURN;
    END IF;
    IF FOUND AND (
        (stored.submitted_at > intent_at AND (new_state = 'planned' OR stored.mark <> new_mark))
        OR (stored.mark = new_mark AND stored.task_id IS NOT NULL AND (
            new_task_id IS NULL OR (stored.state = ANY (ended) AND new_state <> ALL (ended))
        ))
    ) THEN  -- it was saved, and then this process or another got further
        RETURN QUERY SELECT 'saved', coalesce(stored.holder = me, false), NULL::bytea, NULL::bytea;
        RETURN;
    END IF;
    new_holder := CASE
        WHEN new_state = 'intent' THEN me
        WHEN stored.holder <> me AND kie4o.alive(stored.holder) THEN stored.holder
        WHEN keeps AND stored.holder = me AND (new_state = 'planned' OR stored.mark <> new_mark) THEN me
    END;
    PERFORM kie4o.put(
        of_account, new_key, new_mark, new_fingerprint, new_state, new_task_id, new_submitted_at, new_price,
        new_body, new_checksum, new_holder
    );
    DELETE FROM kie4o.entry WHERE account = of_account AND mark = new_mark AND key <> new_key;
    IF new_state = ANY (ended) THEN
        DELETE FROM kie4o.inbox WHERE account = of_account AND mark = new_mark;
    END IF;
    RETURN QUERY SELECT 'saved', coalesce(new_holder = me, false), NULL::bytea, NULL::bytea;
END $$;

-- Let go of a key; what was not sent under it is deleted. An intent stays in the hands of its process.
CREATE FUNCTION kie4o.release(me bigint, of_account bytea, of_key bytea) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    DELETE FROM kie4o.entry
        WHERE account = of_account AND key = of_key AND holder = me AND state = 'planned';
    UPDATE kie4o.entry SET holder = NULL
        WHERE account = of_account AND key = of_key AND holder = me AND state <> 'intent';
END $$;

CREATE FUNCTION kie4o.forget(of_account bytea, of_key bytea) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    DELETE FROM kie4o.inbox USING kie4o.entry
        WHERE entry.account = of_account AND entry.key = of_key
        AND inbox.account = of_account AND inbox.mark = entry.mark;
    DELETE FROM kie4o.entry WHERE account = of_account AND key = of_key;
END $$;

-- Remove those of these entries that have ended and are in nobody's hands, and count them in `pruned`. Returns how
-- many they are.
CREATE FUNCTION kie4o.prune(of_account bytea, marks bytea[]) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    number bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    WITH removed AS (
        DELETE FROM kie4o.entry
        WHERE account = of_account AND mark = ANY (marks) AND state IN ('succeeded', 'failed')
            AND NOT kie4o.alive(holder)
        RETURNING mark, state, task_id, coalesce(price, '') AS price
    ), unnamed AS (
        DELETE FROM kie4o.inbox WHERE account = of_account AND mark IN (SELECT mark FROM removed)
    ), counted AS (
        INSERT INTO kie4o.pruned
            SELECT of_account, state, price, count(*) FROM removed
            WHERE state <> 'failed' OR task_id IS NOT NULL  -- as `Entry.charged` says
            GROUP BY state, price ORDER BY state, price
        ON CONFLICT (account, state, price) DO UPDATE SET tasks = pruned.tasks + excluded.tasks
    )
    SELECT count(*) INTO number FROM removed;
    RETURN number;
END $$;

CREATE FUNCTION kie4o.keep_callback(
    of_account bytea, of_mark bytea, new_task_id text, new_checksum bytea, most integer
) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    INSERT INTO kie4o.inbox
        SELECT of_account, of_mark, new_task_id, new_checksum
        WHERE (SELECT count(*) FROM kie4o.inbox WHERE account = of_account AND mark = of_mark) < most
        ON CONFLICT DO NOTHING;
END $$;
