-- The window of an account, which all its processes share.

-- One question of a client: it says what it has, and the rows are made to agree. The client may ask again after
-- a lost reply, since nothing is counted twice: each slot has a token. `question` numbers the questions of a
-- process, so that one whose connection was lost, and which the server executes late, changes nothing.
--
--   waiting, in_front   the tokens of those who wait, and whether each goes before the others
--   held                the tokens of slots that are in use
--   answered            the tokens of slots whose requests were answered
--   good                seconds in which a granted request is sent; as many again until it arrives
--   earliest, latest    what the clock should show, as Unix time, or NULL if the client has not asked before
--   new_pause           seconds in which nothing is granted to anybody, for the reason new_cause, or NULL
--
-- Outcomes: answered; lost (the lease of the process is); late (a later question was answered before); doubtful
-- (the clock does not show what it should). After the last three nothing has changed. `chances` says in how many
-- seconds each of the first who wait may get a slot, as far as that is known, and `again` in how many the client
-- has to ask. If it comes more than half a second later, others are served before those who wait in it.
CREATE FUNCTION kie4o.take(
    of_account bytea, me bigint, question bigint,
    waiting uuid[], in_front boolean[], held uuid[], answered uuid[],
    most integer, per double precision, good double precision,
    earliest double precision, latest double precision, new_pause double precision, new_cause text
) RETURNS TABLE (
    outcome text, server_time double precision, granted uuid[], chances double precision[],
    again double precision, pause double precision, cause text
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    stored kie4o.account;
    t timestamptz;
    wide CONSTANT interval := make_interval(secs => per);
    sending CONSTANT interval := make_interval(secs => 2 * good);
    promotion timestamptz;
    gone bigint[];
    in_use integer;
    stamps timestamptz[];  -- when the slots that count were answered, the oldest first
    free integer;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the store needs transactions that are read committed';
    END IF;
    PERFORM set_config('synchronous_commit', 'on', true);

    -- The lock of the account. It is not taken in the statement that counts, which would see what was committed
    -- before it began to wait for the lock.
    LOOP
        SELECT * INTO stored FROM kie4o.account WHERE id = of_account FOR UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO kie4o.account (id) VALUES (of_account) ON CONFLICT DO NOTHING;
    END LOOP;
    PERFORM kie4o.notice_server();
    t := kie4o.clock();
    server_time := extract(epoch FROM t);
    outcome := CASE
        WHEN NOT kie4o.alive(me) THEN 'lost'
        WHEN question <= (SELECT asked FROM kie4o.process WHERE id = me) THEN 'late'
        WHEN server_time < earliest OR server_time > latest THEN 'doubtful'
        ELSE 'answered'
    END;
    IF outcome <> 'answered' THEN
        RETURN NEXT;
        RETURN;
    END IF;

    -- Pauses of the whole account. None is longer than those below, unless the clock was set back.
    stored.longest := greatest(stored.longest, wide);
    stored.paused_until := least(stored.paused_until, t + stored.longest + sending);
    IF t + make_interval(secs => new_pause) > stored.paused_until THEN
        stored.paused_until := t + make_interval(secs => new_pause);
        stored.paused_for := new_cause;
    END IF;
    -- A replica that takes over may lack the slots that were taken last.
    SELECT promoted_at + stored.longest + sending INTO promotion
        FROM kie4o.server WHERE promoted_at < t + interval '1 s';
    IF promotion > stored.paused_until THEN
        stored.paused_until := promotion;
        stored.paused_for := 'replica';
    END IF;
    UPDATE kie4o.account AS each
        SET paused_until = stored.paused_until, paused_for = stored.paused_for, longest = stored.longest
        WHERE id = of_account AND each IS DISTINCT FROM stored;
    IF stored.paused_until > t THEN
        pause := extract(epoch FROM stored.paused_until - t);
        cause := stored.paused_for;
    END IF;

    -- What this client says about its slots. Those that it does not name it does not have: their waiters were
    -- cancelled, or their requests not sent. One that was granted to a waiter who was not told waits again.
    UPDATE kie4o.slot SET answered_at = t WHERE token = ANY (answered) AND answered_at IS NULL;
    INSERT INTO kie4o.slot (token, account, process, answered_at)
        SELECT each.token, of_account, me, t FROM unnest(answered) AS each (token) ON CONFLICT DO NOTHING;
    DELETE FROM kie4o.slot
        WHERE account = of_account AND process = me AND answered_at IS NULL
        AND token NOT IN (SELECT unnest(waiting || held));
    UPDATE kie4o.slot SET process = me, taken_at = CASE WHEN token = ANY (held) THEN taken_at END
        WHERE token = ANY (waiting || held) AND answered_at IS NULL
        AND (process <> me OR (taken_at IS NOT NULL AND token = ANY (waiting)));
    INSERT INTO kie4o.slot (token, account, process, front)
        SELECT each.token, of_account, me, each.front
        FROM unnest(waiting, in_front) WITH ORDINALITY AS each (token, front, place)
        WHERE NOT EXISTS (SELECT FROM kie4o.slot WHERE slot.token = each.token)
        ORDER BY place;

    -- Slots whose time has not come yet: the clock was set back. They count from now.
    UPDATE kie4o.slot SET taken_at = least(taken_at, t), answered_at = CASE WHEN answered_at > t THEN t ELSE answered_at END
        WHERE account = of_account AND greatest(taken_at, answered_at) > t + interval '1 s';
    -- A request of a process that is gone was sent and has arrived, if at all, some time after its slot was taken.
    gone := ARRAY (
        SELECT process FROM (
            SELECT DISTINCT process FROM kie4o.slot WHERE account = of_account AND answered_at IS NULL
        ) AS each
        WHERE process <> me AND NOT kie4o.alive(process)
    );
    DELETE FROM kie4o.slot
        WHERE account = of_account AND (
            answered_at <= t - stored.longest
            OR (answered_at IS NULL AND process = ANY (gone)
                AND (taken_at IS NULL OR taken_at + sending <= t - stored.longest))
        );
    SELECT count(*) FILTER (WHERE stamp IS NULL), array_agg(stamp ORDER BY stamp) FILTER (WHERE stamp > t - wide)
        INTO in_use, stamps
        FROM (
            SELECT CASE
                WHEN answered_at IS NOT NULL THEN answered_at
                WHEN process = ANY (gone) THEN taken_at + sending
            END AS stamp
            FROM kie4o.slot WHERE account = of_account AND (taken_at IS NOT NULL OR answered_at IS NOT NULL)
        ) AS counted;
    free := most - in_use - coalesce(cardinality(stamps), 0);

    -- First come, first served, among those who are there to take a slot.
    WITH queue AS (
        SELECT slot.token, slot.process, row_number() OVER (ORDER BY slot.front DESC, slot.ticket)::integer AS rank
        FROM kie4o.slot JOIN kie4o.process ON process.id = slot.process
        WHERE slot.account = of_account AND slot.taken_at IS NULL AND slot.answered_at IS NULL
            AND (process.id = me OR process.asks_by BETWEEN t - interval '0.5 s' AND t + interval '2 s')
    ), mine AS (
        SELECT token, rank, rank <= free AND pause IS NULL AS now, CASE
            WHEN rank <= free THEN stored.paused_until
            WHEN rank - free <= cardinality(stamps) THEN greatest(stamps[rank - free] + wide, stored.paused_until)
        END AS chance
        FROM queue WHERE process = me
    )
    SELECT
        coalesce(array_agg(token ORDER BY rank) FILTER (WHERE now), '{}'),
        coalesce(
            (array_agg(extract(epoch FROM chance - t)::double precision ORDER BY rank)
                FILTER (WHERE NOT now AND chance IS NOT NULL))[1:most],
            '{}'
        )
        INTO granted, chances FROM mine;
    UPDATE kie4o.slot SET taken_at = t WHERE token = ANY (granted);
    again := least(1, per / 5, (SELECT max(chance) FROM unnest(chances) AS chance WHERE chance <= chances[1] + 0.005 * per));
    UPDATE kie4o.process SET asked = question, asks_by = t + make_interval(secs => again) WHERE id = me;
    RETURN NEXT;
END $$;
