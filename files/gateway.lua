-- For HAProxy: whether only an endpoint's engine listens in its place, read from the kernel for every request.
-- While an engine restarts, any local user can listen on its port.

-- `place` is address and port in the kernel's hexadecimal form; `record` is the file in which the readiness check has
-- written user and inode of the engine's sockets, and which systemd removes with the engine. Returns "yes" or "no".
core.register_fetches("engine_listens", function(_, place, record)
    local file = io.open(record)
    if not file then
        return "no"
    end
    local own, found = {}, "no"
    for line in file:lines() do
        own[line] = true
    end
    file:close()
    for line in io.lines(#place > 13 and "/proc/net/tcp6" or "/proc/net/tcp") do
        local at, state, uid, inode = line:match("^%s*%d+: (%x+:%x+) %x+:%x+ (%x%x) %S+ %S+ %S+%s+(%d+)%s+%d+ (%d+)")
        -- Listening sockets, in state 0A, come first.
        if state and state ~= "0A" then
            break
        end
        if at == place then
            if not own[uid .. " " .. inode] then
                return "no"
            end
            found = "yes"
        end
    end
    return found
end)

-- Whether a file exists: "yes" or "no".
core.register_fetches("exists", function(_, path)
    local file = io.open(path)
    if not file then
        return "no"
    end
    file:close()
    return "yes"
end)
