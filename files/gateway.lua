-- For HAProxy: the user that listens where an endpoint's engine should, read from the kernel for every request.
-- While an engine restarts, any local user can listen on its port.

local function name_of(uid)
    for line in io.lines("/etc/passwd") do
        local name, number = line:match("^([^:]+):[^:]*:(%d+):")
        if number == uid then
            return name
        end
    end
    return ""
end

-- `place` is address and port in the kernel's hexadecimal form. Returns the name of the user; empty if nobody listens
-- there, or several users do.
core.register_fetches("listener", function(_, place)
    local owner
    for line in io.lines(#place > 13 and "/proc/net/tcp6" or "/proc/net/tcp") do
        local at, state, uid = line:match("^%s*%d+: (%x+:%x+) %x+:%x+ (%x%x) %S+ %S+ %S+%s+(%d+)")
        -- Listening sockets, in state 0A, come first.
        if state and state ~= "0A" then
            break
        end
        if at == place then
            if owner and owner ~= uid then
                return ""
            end
            owner = uid
        end
    end
    return owner and name_of(owner) or ""
end)
