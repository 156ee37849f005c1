-- The lease of a process, and for how long one that is silent still counts as alive.

CREATE FUNCTION kie4o.lease() RETURNS interval LANGUAGE sql IMMUTABLE AS $$ SELECT interval '30 s' $$;

-- The timeline of the log that is being written; pg_control_checkpoint() shows the old one after a promotion.
CREATE FUNCTION kie4o.timeline() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
$$;

CREATE FUNCTION kie4o.identity() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT extract(epoch FROM pg_postmaster_start_time())::text || ' ' || kie4o.timeline()
$$;

INSERT INTO kie4o.server VALUES (kie4o.identity(), '-infinity', kie4o.timeline(), '-infinity');

-- Whether a process holds what it holds. Leases do not run out while the database is away: after its identity
-- has changed, every process has one full lease to come back.
CREATE FUNCTION kie4o.alive(which bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    expiry timestamptz;
BEGIN
    SELECT expires_at INTO expiry FROM kie4o.process WHERE id = which;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    RETURN expiry > clock_timestamp() OR EXISTS (
        SELECT FROM kie4o.server
        WHERE identity <> kie4o.identity() OR since + kie4o.lease() > clock_timestamp()
    );
END $$;

-- Notice that the server was restarted, or that another one has taken over.
CREATE FUNCTION kie4o.notice_server() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF EXISTS (SELECT FROM kie4o.server WHERE identity <> kie4o.identity()) THEN
        UPDATE kie4o.server SET
            identity = kie4o.identity(),
            since = clock_timestamp(),
            timeline = kie4o.timeline(),
            promoted_at = CASE WHEN timeline = kie4o.timeline() THEN promoted_at ELSE clock_timestamp() END
        WHERE identity <> kie4o.identity();
    END IF;
END $$;

-- Begin the lease of a new process, and drop what is left of those that are long gone and hold nothing.
CREATE FUNCTION kie4o.enter(me bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    PERFORM kie4o.notice_server();
    INSERT INTO kie4o.process VALUES
        (me, clock_timestamp(), clock_timestamp() + kie4o.lease(), clock_timestamp())
        ON CONFLICT (id) DO NOTHING;
    DELETE FROM kie4o.process AS gone
        WHERE gone.expires_at < clock_timestamp() - interval '1 hour' AND NOT kie4o.alive(gone.id)
        AND NOT EXISTS (SELECT FROM kie4o.entry WHERE holder = gone.id);
END $$;

-- Extend the lease. Returns whether it had not been lost, and the timeline of the server.
CREATE FUNCTION kie4o.renew(me bigint) RETURNS TABLE (kept boolean, line text)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM kie4o.notice_server();
    UPDATE kie4o.process SET expires_at = clock_timestamp() + kie4o.lease()
        WHERE id = me AND kie4o.alive(me);
    RETURN QUERY SELECT FOUND, kie4o.timeline();
END $$;

-- End the lease of a process that closes. What it holds and has not sent is free at once; an intent that it
-- could not undo is unknown.
CREATE FUNCTION kie4o.leave(me bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE kie4o.entry SET holder = NULL WHERE holder = me AND state <> 'intent';
    DELETE FROM kie4o.process WHERE id = me;
END $$;
