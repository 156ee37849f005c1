-- Notifications. They save time, never correctness: a process that misses one finds out by asking.
--
-- A notification takes a lock of the whole database when it commits, so one is sent only about what somebody
-- waits for. Its payload is a word and a hash or a task id: never data. The channel is named after the schema.

CREATE FUNCTION kie4o.tell(what text) RETURNS void LANGUAGE sql VOLATILE AS $$
    SELECT pg_notify('kie4o.news', what)
$$;

CREATE FUNCTION kie4o.hash_word(word text, hash bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT word || ' ' || encode(substr(hash, 1, 16), 'hex')
$$;

-- Have the holder of a key tell when it lets go of it. Returns whether another live process holds it.
CREATE FUNCTION kie4o.want(me bigint, of_account bytea, of_key bytea) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE kie4o.entry SET wanted = true
        WHERE account = of_account AND key = of_key AND holder <> me AND NOT wanted;
    RETURN EXISTS (
        SELECT FROM kie4o.entry
        WHERE account = of_account AND key = of_key AND holder <> me AND wanted AND kie4o.alive(holder)
    );
END $$;

-- A wanted key passes out of its holder's hands.
CREATE FUNCTION kie4o.tell_of_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM kie4o.tell(kie4o.hash_word('key', OLD.key));
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    NEW.wanted := false;
    RETURN NEW;
END $$;
CREATE TRIGGER key_passes BEFORE UPDATE ON kie4o.entry FOR EACH ROW
    WHEN (OLD.wanted AND NEW.holder IS DISTINCT FROM OLD.holder) EXECUTE FUNCTION kie4o.tell_of_key();
CREATE TRIGGER key_is_deleted BEFORE DELETE ON kie4o.entry FOR EACH ROW
    WHEN (OLD.wanted) EXECUTE FUNCTION kie4o.tell_of_key();

-- A callback names a task of a submit whose answer was lost, or such a submit gets its task. Both are rare, and
-- whether anybody waits for it is known only to the processes.
CREATE FUNCTION kie4o.tell_of_ref() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM kie4o.tell(kie4o.hash_word('ref', NEW.mark));
    RETURN NULL;
END $$;
CREATE TRIGGER callback_is_kept AFTER INSERT ON kie4o.inbox FOR EACH ROW
    EXECUTE FUNCTION kie4o.tell_of_ref();
CREATE TRIGGER task_is_named AFTER UPDATE ON kie4o.entry FOR EACH ROW
    WHEN (OLD.state = 'unknown' AND OLD.mark = NEW.mark AND OLD.task_id IS NULL AND NEW.task_id IS NOT NULL)
    EXECUTE FUNCTION kie4o.tell_of_ref();
