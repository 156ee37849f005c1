-- Which process polls a task that several wait for. Nothing is written per poll. A row that is lost, or of which
-- two processes believe that it is theirs, costs polls: so no commit waits for the disk.

-- Take the tasks that no live process polls, and follow the others. Returns a row for each: whether it is ours,
-- and how it has ended, by what was written here or in an entry.
CREATE FUNCTION kie4o.lead(me bigint, of_account bytea, task_ids text[]) RETURNS TABLE (
    task_id text, mine boolean, details bytea, details_checksum bytea, body bytea, body_checksum bytea
) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    free text[];
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    WITH seen AS MATERIALIZED (
        SELECT asked.id, watch.task_id AS known, watch.holder, watch.details
        FROM unnest(task_ids) AS asked (id)
        LEFT JOIN kie4o.watch ON watch.account = of_account AND watch.task_id = asked.id
    ), gone AS MATERIALIZED (
        SELECT holder FROM (SELECT DISTINCT holder FROM seen WHERE holder IS NOT NULL) AS holders
        WHERE NOT kie4o.alive(holder)
    )
    SELECT array_agg(id ORDER BY id) INTO free FROM seen
        WHERE known IS NULL
        OR (details IS NULL AND (holder IS NULL OR holder IN (SELECT holder FROM gone)));
    IF free IS NOT NULL THEN
        INSERT INTO kie4o.watch AS w (account, task_id, holder, touched_at)
            SELECT of_account, id, me, clock_timestamp() FROM unnest(free) AS missing (id)
            ON CONFLICT (account, task_id) DO UPDATE
                SET holder = me, followed = false, touched_at = clock_timestamp()
                WHERE w.details IS NULL AND w.holder IS DISTINCT FROM me AND NOT kie4o.alive(w.holder);
    END IF;
    UPDATE kie4o.watch SET followed = true, touched_at = clock_timestamp()
        WHERE account = of_account AND task_id = ANY (task_ids)
        AND holder <> me AND details IS NULL AND NOT followed;
    RETURN QUERY
        SELECT watch.task_id, coalesce(watch.holder = me, false), watch.details, watch.checksum,
            entry.body, entry.checksum
        FROM kie4o.watch LEFT JOIN kie4o.entry
            ON entry.account = of_account AND entry.task_id = watch.task_id
            AND entry.state IN ('succeeded', 'failed')
        WHERE watch.account = of_account AND watch.task_id = ANY (task_ids);
END $$;

-- Stop polling and following tasks. What is known of the end of one is for those that still follow it; they are
-- told of that, and that a task has nobody who polls it.
CREATE FUNCTION kie4o.leave_tasks(
    me bigint, of_account bytea, task_ids text[], ends bytea[], checksums bytea[]
) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    passed text;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    DELETE FROM kie4o.watch
        WHERE account = of_account AND task_id = ANY (task_ids) AND holder = me AND NOT followed;
    FOR passed IN
        UPDATE kie4o.watch SET
            holder = NULL, details = ended.details, checksum = ended.checksum, touched_at = clock_timestamp()
        FROM unnest(task_ids, ends, checksums) AS ended (id, details, checksum)
        WHERE watch.account = of_account AND watch.task_id = ended.id AND watch.details IS NULL
        AND (watch.holder = me OR ended.details IS NOT NULL)
        RETURNING watch.task_id
    LOOP
        PERFORM kie4o.tell('task ' || passed);
    END LOOP;
END $$;

-- Take the turn for one poll by a process that does not poll the task anyway. Returns the seconds until the next
-- turn, 0 if this is ours, and how the task has ended.
CREATE FUNCTION kie4o.take_turn(
    of_account bytea, of_task_id text, gap interval
) RETURNS TABLE (seconds double precision, details bytea, checksum bytea)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO kie4o.watch AS w (account, task_id, touched_at, looked_at)
        VALUES (of_account, of_task_id, clock_timestamp(), clock_timestamp())
        ON CONFLICT (account, task_id) DO UPDATE
            SET looked_at = clock_timestamp(), touched_at = clock_timestamp()
            WHERE w.details IS NULL AND w.looked_at <= clock_timestamp() - gap;
    IF FOUND THEN
        RETURN QUERY SELECT 0.0::double precision, NULL::bytea, NULL::bytea;
        RETURN;
    END IF;
    RETURN QUERY
        SELECT extract(epoch FROM watch.looked_at + gap - clock_timestamp())::double precision,
            watch.details, watch.checksum
        FROM kie4o.watch WHERE watch.account = of_account AND watch.task_id = of_task_id;
END $$;

-- Drop what nobody has touched for a while and no live process polls.
CREATE FUNCTION kie4o.drop_watches() RETURNS void LANGUAGE sql VOLATILE AS $$
    DELETE FROM kie4o.watch
        WHERE touched_at < clock_timestamp() - interval '10 min'
        AND (holder IS NULL OR details IS NOT NULL OR NOT kie4o.alive(holder))
$$;

-- Those of these keys that another live process has in hand: it submits them, or polls their tasks.
CREATE FUNCTION kie4o.held(me bigint, of_account bytea, keys bytea[]) RETURNS SETOF bytea
LANGUAGE sql VOLATILE AS $$
    SELECT entry.key FROM kie4o.entry LEFT JOIN kie4o.watch
        ON entry.state = 'submitted' AND watch.account = of_account AND watch.task_id = entry.task_id
    WHERE entry.account = of_account AND entry.key = ANY (keys) AND (
        (entry.holder <> me AND kie4o.alive(entry.holder)) OR (watch.holder <> me AND kie4o.alive(watch.holder))
    )
$$;

-- Another process than the one that polls a task has saved its end, or others follow it.
CREATE FUNCTION kie4o.tell_of_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM kie4o.watch WHERE account = NEW.account AND task_id = NEW.task_id
        AND (followed OR holder::text <> current_setting('writer.process', true))
    ) THEN
        PERFORM kie4o.tell('task ' || NEW.task_id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER task_ends AFTER UPDATE ON kie4o.entry FOR EACH ROW
    WHEN (
        NEW.task_id IS NOT NULL AND NEW.state IN ('succeeded', 'failed')
        AND OLD.state NOT IN ('succeeded', 'failed')
    )
    EXECUTE FUNCTION kie4o.tell_of_end();
